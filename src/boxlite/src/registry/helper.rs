//! Helpers of credentials: programs `docker-credential-<name>` that keep logins for `docker login`.
//!
//! One is called with the argument `get`, reads the registry's key from its standard input, and writes a JSON document
//! or says that it knows nothing.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::credentials::Login;
use super::error::{Failure, RegistryErrorKind, shown};

/// The most that a helper may write, in bytes.
const OUTPUT_MAX: u64 = 64 << 10;
/// How long the end of a killed helper is waited for.
const REAP: Duration = Duration::from_millis(200);
/// What a helper writes, and fails, when it has nothing.
const NOTHING: &str = "credentials not found";
/// The name of a user whose password is an identity token.
const IDENTITY: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// A helper that runs. Dropping it kills it, with all that it has started, and reaps it.
struct Running(Child);

impl Running {
    fn kill(&mut self) {
        // Without an id it has been reaped.
        let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) else { return };
        if let Err(error) = killpg(Pid::from_raw(group), Signal::SIGKILL) {
            tracing::debug!(%error, "a helper of credentials cannot be killed");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        // A killed process ends at once, unless it hangs in the kernel. What is left then is reaped by the runtime.
        let until = std::time::Instant::now() + REAP;
        while let Ok(None) = self.0.try_wait() {
            if std::time::Instant::now() >= until {
                tracing::debug!("a killed helper of credentials does not end");
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Asks the helper `name` for the login of `key`. It is looked for in `folder`, or where `PATH` says.
pub(super) async fn get(
    name: &str,
    folder: Option<&Path>,
    key: &str,
    limit: Duration,
) -> Result<Option<Login>, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.is_empty() || !name.bytes().all(plain) {
        let message = format!("`{}` is no name of a helper of credentials", shown(name));
        return Err(Failure::new(RegistryErrorKind::Credentials, message));
    }
    let program = format!("docker-credential-{name}");
    let failed = |what: &str| Failure::new(RegistryErrorKind::Credentials, format!("`{program}` {what}"));
    let mut command = match folder {
        Some(folder) => Command::new(folder.join(&program)),
        None => Command::new(&program),
    };
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let spawned = command.process_group(0).spawn();
    let mut running = Running(spawned.map_err(|e| failed("cannot be started").because(e))?);
    let talk = async {
        let pipes = (running.0.stdin.take(), running.0.stdout.take(), running.0.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(failed("has no pipes"));
        };
        let ask = async move {
            // One that does not read its input says why by its end.
            if let Err(error) = stdin.write_all(format!("{key}\n").as_bytes()).await {
                tracing::debug!(%error, "a helper of credentials does not read");
            }
        };
        let ((), out, err) = tokio::join!(ask, read(stdout), read(stderr));
        let status = running.0.wait().await.map_err(|e| failed("cannot be waited for").because(e))?;
        let out = out.map_err(|e| failed("cannot be read").because(e))?;
        let err = err.map_err(|e| failed("cannot be read").because(e))?;
        Ok((status, out, err))
    };
    let (status, out, err) = match tokio::time::timeout(limit, talk).await {
        Ok(answer) => answer?,
        Err(_) => return Err(failed(&format!("does not end within {} s", limit.as_secs()))),
    };
    if out.len() as u64 > OUTPUT_MAX {
        return Err(failed("writes too much"));
    }
    if !status.success() {
        let words =
            String::from_utf8_lossy(if out.trim_ascii().is_empty() { &err } else { &out }).trim().to_owned();
        if words.starts_with(NOTHING) {
            return Ok(None);
        }
        return Err(failed(&format!("failed ({status})")).because(words));
    }
    // The error of the decoder might quote a secret.
    let answer: Answer = serde_json::from_slice(&out).map_err(|_| failed("writes no login"))?;
    Ok(Login::of(answer.username, answer.secret))
}

/// Reads everything, and keeps what is not too much.
async fn read(mut pipe: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    (&mut pipe).take(OUTPUT_MAX + 1).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(kept)
}

impl Login {
    /// What a user's name and secret mean; `None` when there is no secret.
    pub(super) fn of(username: String, secret: String) -> Option<Self> {
        if secret.is_empty() {
            return None;
        }
        Some(match username.as_str() {
            IDENTITY => Self::Identity { token: secret },
            _ => Self::Password { username, password: secret },
        })
    }
}
