//! Streams made by hand.

/// One entry, or what describes one.
#[must_use]
pub fn entry(path: &[u8], kind: u8, link: &[u8], content: &[u8]) -> Vec<u8> {
    sized(path, kind, link, content, content.len() as u64)
}

/// One whose size is a claim.
#[must_use]
pub fn sized(path: &[u8], kind: u8, link: &[u8], content: &[u8], size: u64) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
    header[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    header[100..108].copy_from_slice(b"0000755\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136]
        .copy_from_slice(format!("{size:011o}\0").as_bytes().get(..12).unwrap_or(b"77777777777\0"));
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    finish(header, content)
}

/// Puts the checksum into a header and the content behind it.
#[must_use]
pub fn finish(mut header: [u8; 512], content: &[u8]) -> Vec<u8> {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = header.to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// A PAX header with one record.
#[must_use]
pub fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    let record = [format!("{length} {key}=").as_bytes(), value, b"\n"].concat();
    entry(b"x", b'x', b"", &record)
}

/// Entries and the end.
#[must_use]
pub fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = entries.concat();
    out.resize(out.len() + 1024, 0);
    out
}
