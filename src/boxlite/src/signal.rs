//! Signals by name and number.

use crate::error::{Error, ErrorKind, Result};

/// The names of the signals of Linux on x86-64 and aarch64, by number; see signal(7).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first and the last of the real-time signals as the C libraries number them for programs.
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// Reads a signal as `kill(1)` and Docker do: a name with or without `SIG`, in either case, `RTMIN+n`, `RTMAX-n`, or a
/// number from 1 to 64.
///
/// # Errors
/// When it is none.
pub fn parse_signal(text: &str) -> Result<u32> {
    let bad = || {
        Error::new(ErrorKind::InvalidArgument, format!("`{}` is no signal", text.escape_debug()))
            .with_hint("use a name such as TERM or SIGHUP, or a number from 1 to 64")
    };
    let upper = text.to_ascii_uppercase();
    if !upper.is_empty() && upper.bytes().all(|byte| byte.is_ascii_digit()) {
        return upper.parse().ok().filter(|number| (1..=RTMAX).contains(number)).ok_or_else(bad);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|known| *known == name) {
        return u32::try_from(at + 1).map_err(|_| bad());
    }
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(RTMIN),
        (_, Some("")) => Some(RTMAX),
        (Some(rest), _) => {
            rest.strip_prefix('+').and_then(|n| n.parse::<u32>().ok()).and_then(|n| RTMIN.checked_add(n))
        }
        (_, Some(rest)) => {
            rest.strip_prefix('-').and_then(|n| n.parse::<u32>().ok()).and_then(|n| RTMAX.checked_sub(n))
        }
        _ => None,
    };
    real_time.filter(|number| (RTMIN..=RTMAX).contains(number)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("1", 1),
            ("64", 64),
            ("SYS", 31),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in
            ["", "0", "65", "-1", "+9", "SIG", "TERMINATE", "RTMIN+31", "RTMAX-31", "RTMIN+", "4294967311"]
        {
            assert_eq!(parse_signal(bad).unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad}");
        }
    }
}
