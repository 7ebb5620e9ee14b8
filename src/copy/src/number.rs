//! Numbers in the fields of a tar header: octal digits, or a big-endian number behind a set top bit.
//!
//! Whatever stands in a field, the result is the exact number or none at all: nothing is cut or wraps.

/// The number in a field. An empty field is zero.
pub(crate) fn decode(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => binary(*first, field.get(1..)?),
        _ => octal(field),
    }
}

/// [`decode`] for what cannot be negative.
pub(crate) fn decode_unsigned(field: &[u8]) -> Option<u64> {
    u64::try_from(decode(field)?).ok()
}

/// Two's complement, of which the first byte gives seven bits.
fn binary(first: u8, rest: &[u8]) -> Option<i64> {
    let mut number = i64::from(first & 0x3f) - i64::from(first & 0x40);
    for byte in rest {
        number = number.checked_mul(256)?.checked_add(i64::from(*byte))?;
    }
    Some(number)
}

/// Spaces, digits, then nothing but spaces and zero bytes.
fn octal(field: &[u8]) -> Option<i64> {
    let field = field.trim_ascii_start();
    let digits = field.iter().take_while(|byte| (b'0'..=b'7').contains(byte)).count();
    let (digits, rest) = field.split_at_checked(digits)?;
    if rest.iter().any(|byte| !matches!(byte, b' ' | 0)) {
        return None;
    }
    digits.iter().try_fold(0i64, |number, digit| {
        number.checked_mul(8)?.checked_add(i64::from(digit.checked_sub(b'0')?))
    })
}

/// A decimal number and nothing else, as in the records of PAX.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| byte - b'0')?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_hold_octal_digits_or_a_binary_number() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"77777777777\0", Some(0o77777777777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"", Some(0)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\x02", Some(0x102)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"-000001\0", None),
            (b"0000648\0", None),
            (b"64 4\0\0\0\0", None),
            (b"64\x004\0\0\0\0", None),
        ] {
            assert_eq!(decode(field), expected, "{}", field.escape_ascii());
        }
        assert_eq!(decode_unsigned(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), None);
    }

    #[test]
    fn a_decimal_number_has_digits_alone_and_does_not_wrap() {
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for text in [&b""[..], b"18446744073709551616", b"+1", b"-1", b" 1", b"1 ", b"0x1", b"1\0"] {
            assert_eq!(decimal(text), None, "{}", text.escape_ascii());
        }
    }
}
