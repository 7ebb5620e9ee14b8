//! Text that a guest has written, made fit for logs, messages and terminals.

/// At most `limit` bytes of `bytes`, on one line: control characters and what is not UTF-8 are escaped.
pub(crate) fn escape(bytes: &[u8], limit: usize) -> String {
    let mut out = String::new();
    // No byte becomes less than one byte of output, so what lies beyond the limit need not be looked at.
    for chunk in bytes[..bytes.len().min(limit)].utf8_chunks() {
        for character in chunk.valid().chars() {
            // Besides control characters, what reorders or hides text on a terminal.
            if character.is_control()
                || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
            {
                out.extend(character.escape_default());
            } else {
                out.push(character);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
        if out.len() >= limit {
            break;
        }
    }
    if out.len() > limit || bytes.len() > limit {
        let end = (0..=limit.min(out.len())).rev().find(|&end| out.is_char_boundary(end)).unwrap_or(0);
        out.truncate(end);
        out.push('…');
    }
    out
}

/// An error and its causes, outermost first.
pub(crate) fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}

/// The same on one line, for the log.
pub(crate) fn line(error: &dyn std::error::Error) -> String {
    chain(error).join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_terminal_sequence_is_shown_and_not_obeyed() {
        assert_eq!(escape(b"\x1b[2Jhi\n\xff", 100), "\\u{1b}[2Jhi\\n\\xff");
    }

    #[test]
    fn text_of_people_stays_as_it_is() {
        assert_eq!(escape("größer: 日本".as_bytes(), 100), "größer: 日本");
    }

    #[test]
    fn long_text_is_cut_and_says_so() {
        assert_eq!(escape(&[b'a'; 10], 4), "aaaa…");
        assert_eq!(escape(b"aaaa", 4), "aaaa");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_long_or_dangerous(bytes in proptest::collection::vec(any::<u8>(), 0..300), limit in 0_usize..200) {
            let text = escape(&bytes, limit);
            prop_assert!(text.len() <= limit + '…'.len_utf8());
            prop_assert!(!text.chars().any(char::is_control));
        }
    }
}
