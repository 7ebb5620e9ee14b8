//! What boxes use, in the text format of Prometheus, and a socket that serves it on request.
//!
//! The format is version 0.0.4 of Prometheus' exposition formats. Only the state of boxes and what they use is told: no
//! environment, no command, no output.

use std::convert::Infallible;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind, Result};
use crate::health::HealthStatus;
use crate::info::{BoxInfo, BoxStatus};
use crate::runtime::BoxliteRuntime;
use crate::stats::BoxStats;

/// How long a client may take to say what it wants.
const HEADER: Duration = Duration::from_secs(5);
/// How long one connection may last.
const CONNECTION: Duration = Duration::from_secs(60);
/// The most connections at a time.
const MOST_CONNECTIONS: usize = 16;

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricsAddress {
    /// An address and a port of TCP, such as `127.0.0.1:9464`. Whoever reaches it can read.
    Tcp(String),
    /// A Unix socket, which must not exist and is open to this user alone.
    Unix(PathBuf),
}

impl BoxliteRuntime {
    /// What the boxes of this home are doing and use now, in the text format of Prometheus.
    ///
    /// # Errors
    /// When the home cannot be read.
    pub async fn prometheus(&self) -> Result<String> {
        let boxes = self.list_info().await?;
        let asked = boxes.into_iter().map(|info| async move {
            let stats = match info.status.is_active() {
                // One that does not answer, or has just ended, is told without what it uses.
                true => match self.get(&info.id).await {
                    Ok(Some(found)) => found.stats().await.ok(),
                    _ => None,
                },
                false => None,
            };
            (info, stats)
        });
        Ok(text(&join_all(asked).await))
    }

    /// Serves [`BoxliteRuntime::prometheus`] over HTTP, at `/metrics`, until it is dropped. `ready` is told the address once
    /// it listens, with the port that a port of 0 has become.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub async fn serve_metrics(&self, address: &MetricsAddress, ready: impl FnOnce(&str)) -> Result<()> {
        let failed =
            |e: std::io::Error| Error::new(ErrorKind::Network, "cannot serve metrics there").with_source(e);
        let mut clients = JoinSet::new();
        match address {
            MetricsAddress::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                ready(&listener.local_addr().map_err(failed)?.to_string());
                loop {
                    let (stream, _) = listener.accept().await.map_err(failed)?;
                    self.serve(stream, &mut clients).await;
                }
            }
            MetricsAddress::Unix(path) => {
                let socket = Socket::bind(path).map_err(failed)?;
                ready(&path.display().to_string());
                loop {
                    let (stream, _) = socket.listener.accept().await.map_err(failed)?;
                    self.serve(stream, &mut clients).await;
                }
            }
        }
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        clients: &mut JoinSet<()>,
    ) {
        while clients.len() >= MOST_CONNECTIONS {
            clients.join_next().await;
        }
        while clients.try_join_next().is_some() {}
        let runtime = self.clone();
        clients.spawn(async move {
            let service = service_fn(move |request| {
                let runtime = runtime.clone();
                async move { Ok::<_, Infallible>(answer(&runtime, &request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION, connection).await {
                tracing::debug!(%error, "lost a reader of metrics");
            }
        });
    }
}

/// A Unix socket that goes with this value.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    fn bind(path: &std::path::Path) -> std::io::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let listener = UnixListener::bind(path)?;
        let socket = Self { listener, path: path.to_owned() };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove a socket");
        }
    }
}

async fn answer(runtime: &BoxliteRuntime, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
        response
    };
    if request.method() != Method::GET {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => match runtime.prometheus().await {
            Ok(text) => plain(StatusCode::OK, text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", error.report())),
        },
        _ => plain(StatusCode::NOT_FOUND, "see /metrics\n".into()),
    }
}

/// One metric: its name, its type, what it means, and its value for a box, where it has one.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&BoxInfo, Option<&BoxStats>) -> Option<f64>,
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
fn number(value: u64) -> f64 {
    value as f64
}

const METRICS: &[Metric] = &[
    Metric {
        name: "boxlite_box_up",
        kind: "gauge",
        help: "Whether the main command of the box runs.",
        value: |info, _| Some(f64::from(u8::from(info.status == BoxStatus::Running))),
    },
    Metric {
        name: "boxlite_box_healthy",
        kind: "gauge",
        help: "Whether the health check of the box finds it well.",
        value: |info, _| {
            info.health_status().map(|status| f64::from(u8::from(status == HealthStatus::Healthy)))
        },
    },
    Metric {
        name: "boxlite_box_restarts_total",
        kind: "counter",
        help: "How often the restart policy has started the box again since its last start.",
        value: |info, _| Some(f64::from(info.restart_count)),
    },
    Metric {
        name: "boxlite_box_host_cpu_seconds_total",
        kind: "counter",
        help: "CPU time of the virtual machine on the host.",
        value: |_, stats| stats.map(|stats| stats.host_cpu.as_secs_f64()),
    },
    Metric {
        name: "boxlite_box_host_memory_bytes",
        kind: "gauge",
        help: "Memory of the virtual machine that is resident on the host.",
        value: |_, stats| stats.map(|stats| number(stats.host_memory_bytes)),
    },
    Metric {
        name: "boxlite_box_commands_total",
        kind: "counter",
        help: "Commands that were started in the box besides its main one.",
        value: |_, stats| stats.map(|stats| number(stats.commands_executed)),
    },
    Metric {
        name: "boxlite_box_exec_errors_total",
        kind: "counter",
        help: "Commands that could not be started in the box.",
        value: |_, stats| stats.map(|stats| number(stats.exec_errors)),
    },
    Metric {
        name: "boxlite_box_cpu_seconds_total",
        kind: "counter",
        help: "CPU time of the processes in the box, as its guest has it.",
        value: |_, stats| stats?.guest.as_ref().map(|guest| guest.cpu.as_secs_f64()),
    },
    Metric {
        name: "boxlite_box_memory_bytes",
        kind: "gauge",
        help: "Memory of the processes in the box, as its guest has it.",
        value: |_, stats| stats?.guest.as_ref().map(|guest| number(guest.memory_bytes)),
    },
    Metric {
        name: "boxlite_box_tasks",
        kind: "gauge",
        help: "Processes and threads in the box, as its guest has it.",
        value: |_, stats| stats?.guest.as_ref().map(|guest| number(guest.tasks)),
    },
    Metric {
        name: "boxlite_box_disk_used_bytes",
        kind: "gauge",
        help: "What of the writable layer is used, as the guest has it.",
        value: |_, stats| stats?.guest.as_ref().map(|guest| number(guest.disk_used_bytes)),
    },
    Metric {
        name: "boxlite_box_disk_read_bytes_total",
        kind: "counter",
        help: "Read from the disks of the box, as its guest has it.",
        value: |_, stats| stats?.guest.as_ref().map(|guest| number(guest.disk_read_bytes)),
    },
    Metric {
        name: "boxlite_box_disk_written_bytes_total",
        kind: "counter",
        help: "Written to the disks of the box, as its guest has it.",
        value: |_, stats| stats?.guest.as_ref().map(|guest| number(guest.disk_written_bytes)),
    },
    Metric {
        name: "boxlite_box_oom_kills_total",
        kind: "counter",
        help: "Processes in the box that were killed because memory had run out, as its guest has it.",
        value: |_, stats| stats?.guest.as_ref().map(|guest| number(guest.oom_kills)),
    },
];

fn text(boxes: &[(BoxInfo, Option<BoxStats>)]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let mut line = |text: std::fmt::Arguments<'_>| writeln!(out, "{text}").unwrap_or_default();
    line(format_args!("# HELP boxlite_boxes Boxes of the home by status."));
    line(format_args!("# TYPE boxlite_boxes gauge"));
    for status in BoxStatus::ALL {
        let count = boxes.iter().filter(|(info, _)| info.status == status).count();
        line(format_args!("boxlite_boxes{{status=\"{}\"}} {count}", status.name()));
    }
    for Metric { name, kind, help, value } in METRICS {
        line(format_args!("# HELP {name} {help}"));
        line(format_args!("# TYPE {name} {kind}"));
        for (info, stats) in boxes {
            if let Some(value) = value(info, stats.as_ref()) {
                let called = escape(info.name.as_deref().unwrap_or_default());
                line(format_args!("{name}{{id=\"{}\",name=\"{called}\"}} {value}", info.id));
            }
        }
    }
    out
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::BoxRecord;

    #[test]
    fn every_box_has_a_line_for_what_is_known_of_it() {
        let record = BoxRecord { name: Some("web".into()), ..BoxRecord::for_tests() };
        let text = text(&[(BoxInfo::new(&record, None), None)]);
        assert!(text.contains("boxlite_boxes{status=\"configured\"} 1\n"), "{text}");
        assert!(text.contains("boxlite_box_up{id=\"0123456789ab\",name=\"web\"} 0\n"), "{text}");
        assert!(!text.contains("boxlite_box_memory_bytes{"), "{text}");
        for line in text.lines() {
            let good =
                line.starts_with("# HELP ") || line.starts_with("# TYPE ") || line.starts_with("boxlite_");
            assert!(good, "{line}");
        }
    }

    #[tokio::test]
    async fn a_socket_answers_get_metrics_alone_and_goes_with_its_server() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let folder = tempfile::tempdir().unwrap();
        let options = crate::BoxliteOptions::with_home(folder.path().join("home"));
        let runtime = BoxliteRuntime::new(options).unwrap();
        let path = folder.path().join("metrics.sock");
        let (sender, ready) = tokio::sync::oneshot::channel();
        let server = tokio::spawn({
            let address = MetricsAddress::Unix(path.clone());
            async move { runtime.serve_metrics(&address, move |_| sender.send(()).unwrap()).await }
        });
        ready.await.unwrap();
        for (request, expected) in [
            ("GET /metrics", "200 OK"),
            ("GET /", "404 Not Found"),
            ("POST /metrics", "405 Method Not Allowed"),
        ] {
            let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
            let asked = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(asked.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{answer}");
            assert_eq!(answer.contains("boxlite_boxes"), expected == "200 OK");
        }
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        assert!(!path.exists());
    }
}
