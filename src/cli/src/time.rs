//! Times as people give them and read them.

use std::time::{Duration, SystemTime};

/// A length of time: `90s`, `1h30m`, `100ms`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = text.parse().map_err(|_| format!("`{text}` is too long"))?;
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}: use a number and ms, s, m, h or d"))
}

/// A moment: RFC 3339, seconds since the Unix epoch, or how long ago it was.
pub(crate) fn moment(text: &str) -> Result<SystemTime, String> {
    let number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if number {
        let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is no time"))?;
        let since = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
        return SystemTime::UNIX_EPOCH.checked_add(since).ok_or_else(|| format!("`{text}` is too late"));
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| format!("`{text}` is too long ago"));
    }
    humantime::parse_rfc3339_weak(text)
        .map_err(|_| format!("`{text}` is no time: use 2026-01-31T12:00:00Z, seconds since 1970, or 10m"))
}

/// A moment to the nanosecond, in RFC 3339.
pub(crate) fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_units() {
        for (text, millis) in [("5", 5000), ("90s", 90_000), ("1h30m", 5_400_000), ("100ms", 100), ("0", 0)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for bad in ["", "x", "-5s", "5 parsecs", "99999999999999999999"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_are_absolute_or_ago() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_millis(seconds);
        assert_eq!(moment("2009-02-13T23:31:30Z").unwrap(), at(1_234_567_890_000));
        assert_eq!(moment("1234567890.5").unwrap(), at(1_234_567_890_500));
        let ago = SystemTime::now().duration_since(moment("10m").unwrap()).unwrap();
        assert!((599..601).contains(&ago.as_secs()), "{ago:?}");
        for bad in ["", "yesterday", "1.2.3", "2009-13-13T23:31:30Z"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
        assert_eq!(shown(at(1_234_567_890_500)), "2009-02-13T23:31:30.500000000Z");
    }
}
