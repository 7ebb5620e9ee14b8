//! What the answers of registries mean.

use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use serde::Deserialize;

use super::error::{Failure, RegistryErrorKind, Retry, shown};
use super::transport::Response;

/// The most messages of an error document that are shown.
const MESSAGES_MAX: usize = 3;

/// What a status that is none of success means. `place` is who has sent it.
pub(super) async fn failure(place: &str, response: Response) -> Failure {
    let status = response.status();
    // A date is possible too, and is taken as no wish: registries send seconds.
    let asked = response.header(&RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let retry = asked.map_or(Retry::Soon, |seconds| Retry::After(Duration::from_secs(seconds)));
    let (kind, retry, what) = match status.as_u16() {
        401 => (RegistryErrorKind::Unauthorized, Retry::Never, "wants a login".to_owned()),
        403 => (RegistryErrorKind::Denied, Retry::Never, "denies it".to_owned()),
        404 => (RegistryErrorKind::NotFound, Retry::Never, "has no such thing".to_owned()),
        429 => {
            let wish = asked.map(|seconds| format!(", and asks to wait {seconds} s")).unwrap_or_default();
            (RegistryErrorKind::RateLimited, retry, format!("got too many requests{wish}"))
        }
        code => {
            let again = matches!(code, 408 | 425 | 500..=599);
            let retry = if again { retry } else { Retry::Never };
            (RegistryErrorKind::Server(code), retry, format!("answers with the status {code}"))
        }
    };
    let failure = Failure::new(kind, format!("{place} {what}")).retry(retry);
    match messages(&response.error_document().await) {
        Some(messages) => failure.because(messages),
        None => failure,
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    errors: Vec<Message>,
    #[serde(flatten)]
    other: Other,
}

#[derive(Deserialize)]
struct Message {
    code: Option<String>,
    message: Option<String>,
}

/// What token servers send instead.
#[derive(Deserialize)]
struct Other {
    error_description: Option<String>,
    details: Option<String>,
    message: Option<String>,
}

/// What an error document says; `None` for a page for people.
fn messages(document: &[u8]) -> Option<String> {
    let document: Document = serde_json::from_slice(document).ok()?;
    let one = |message: &Message| match (&message.code, &message.message) {
        (Some(code), Some(text)) if !text.is_empty() => Some(format!("{code}: {text}")),
        (code, text) => code.clone().or_else(|| text.clone()),
    };
    let shown_messages: Vec<_> = document.errors.iter().filter_map(one).take(MESSAGES_MAX).collect();
    let text = if shown_messages.is_empty() {
        let other = document.other;
        other.error_description.or(other.details).or(other.message)?
    } else {
        shown_messages.join("; ")
    };
    Some(shown(&text)).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_own_words_are_shown() {
        for (document, words) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#,
                Some("MANIFEST_UNKNOWN: manifest unknown"),
            ),
            (r#"{"errors":[{"code":"A"},{"message":"b"},{}]}"#, Some("A; b")),
            (r#"{"details":"incorrect username or password"}"#, Some("incorrect username or password")),
            (r#"{"error":"invalid_grant","error_description":"no"}"#, Some("no")),
            (r#"{"errors":[]}"#, None),
            ("<html>", None),
            ("", None),
            (r#"{"errors":"x"}"#, None),
        ] {
            assert_eq!(messages(document.as_bytes()).as_deref(), words, "{document}");
        }
    }

    #[test]
    fn hostile_words_are_escaped_and_cut() {
        let document = format!(r#"{{"errors":[{{"code":"\u001b[2J{}"}}]}}"#, "x".repeat(5000));
        let words = messages(document.as_bytes()).unwrap();
        assert!(words.starts_with("\\u{1b}[2Jxxx") && words.chars().count() < 320, "{words}");
    }
}
