//! The records of a PAX header: `"<length> <key>=<value>\n"`, where the length counts all of it, itself too.
//!
//! A value may hold any byte, a line feed as well, so the lengths alone say where a record ends.

use crate::number;
use crate::stream::StreamError;

/// How large the records of one entry may be, in bytes.
pub(crate) const LIMIT: usize = 1 << 20;

/// Appends a record.
pub(crate) fn append(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    // The digits of the length are part of it, so it is right once it does not change any more.
    while rest + digits(length) != length {
        length = rest + digits(length);
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().and_then(|log| usize::try_from(log).ok()).unwrap_or(0) + 1
}

/// Appends a time as seconds with a fraction; `nanos` counts up from `seconds`, before 1970 too.
pub(crate) fn append_time(out: &mut Vec<u8>, key: &[u8], seconds: i64, nanos: u32) {
    let (sign, seconds, nanos) = match (seconds < 0, nanos) {
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, _) => ("-", seconds.saturating_add(1).unsigned_abs(), 1_000_000_000u32.saturating_sub(nanos)),
        (false, _) => ("", seconds.unsigned_abs(), nanos),
    };
    append(out, key, format!("{sign}{seconds}.{nanos:09}").as_bytes());
}

/// Seconds and nanoseconds that count up from them.
pub(crate) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(number::decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Digits beyond nanoseconds are cut, missing ones are zero.
    let nanos = (0..9).fold(0u32, |nanos, at| {
        nanos * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit.saturating_sub(b'0')))
    });
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// The keys and values of a PAX header, or an error as the last of them.
pub(crate) fn records(mut bytes: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), StreamError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some((record, rest)) = split(bytes) else {
            bytes = &[];
            return Some(Err(StreamError::Malformed("a PAX record does not have the length it claims")));
        };
        bytes = rest;
        Some(Ok(record))
    })
}

/// The key and the value of a record.
type Record<'a> = (&'a [u8], &'a [u8]);

fn split(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    // No record is longer than the limit, so its length has few digits.
    let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let length = usize::try_from(number::decimal(bytes.get(..space)?)?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    Some(((record.get(..equals)?, record.get(equals + 1..)?), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_counts_its_own_digits() {
        for (value, expected) in [("", "6 a=\n"), ("bcde", "9 a=bcde\n"), ("bcdef", "11 a=bcdef\n")] {
            let mut out = Vec::new();
            append(&mut out, b"a", value.as_bytes());
            // The shortest record is `5 a=` with its line feed, whose length is five.
            assert_eq!(
                out.len(),
                usize::try_from(number::decimal(out.split(|b| *b == b' ').next().unwrap()).unwrap()).unwrap()
            );
            assert!(expected.ends_with(&format!("a={value}\n")));
        }
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        for bytes in [
            &b"7 a=b\n"[..],
            b"5 a=b\n",
            b"0 a=b\n",
            b"6 a=b",
            b"6 =bc\n",
            b"6 abc\n",
            b"a=b\n",
            b"-6 a=b\n",
            b"99999999999999999999999 a=b\n",
            b"2 \n",
            b" ",
            b"6 a=b\n\0",
        ] {
            assert!(records(bytes).any(|record| record.is_err()), "{}", bytes.escape_ascii());
            assert!(records(bytes).count() <= 2);
        }
    }

    #[test]
    fn times_before_1970_count_up_from_their_second() {
        for (text, expected) in [
            (&b"1.5"[..], Some((1, 500_000_000))),
            (b"1", Some((1, 0))),
            (b"-1.25", Some((-2, 750_000_000))),
            (b"-3", Some((-3, 0))),
            (b"1.0000000019", Some((1, 1))),
            (b"9223372036854775807", Some((i64::MAX, 0))),
            (b"9223372036854775808", None),
            (b"1.x", None),
            (b"--1", None),
            (b"", None),
        ] {
            assert_eq!(time(text), expected, "{}", text.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn what_was_appended_is_read_back(records_in: Vec<(u8, Vec<u8>)>, seconds in i64::MIN + 1.., nanos in 0u32..1_000_000_000) {
            let mut out = Vec::new();
            for (key, value) in &records_in {
                append(&mut out, &[b'a' + key % 26], value);
            }
            append_time(&mut out, b"mtime", seconds, nanos);
            let read: Vec<_> = records(&out).map(Result::unwrap).collect();
            prop_assert_eq!(read.len(), records_in.len() + 1);
            for ((key, value), (key_in, value_in)) in read.iter().zip(&records_in) {
                prop_assert_eq!((*key, *value), (&[b'a' + key_in % 26][..], value_in.as_slice()));
            }
            prop_assert_eq!(time(read.last().unwrap().1), Some((seconds, nanos)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            prop_assert!(records(&bytes).count() <= bytes.len());
            prop_assert!(time(&bytes).is_none_or(|(_, nanos)| nanos < 1_000_000_000));
        }
    }
}
