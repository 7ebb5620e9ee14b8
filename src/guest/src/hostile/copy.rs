//! Sends what nobody has asked for.
//!
//! A copy from `/tricks/<number>/<folder of the host>` gets that trick, played against that folder; behind the last one there is
//! nothing. `/tricks/share` tells what came of the tricks against the share.

use std::io::{self, Write};

use boxlite_portal::transfer::{self, Kind};
use boxlite_portal::v1::{FileKind, PackRequest, TransferFailure, TransferInfo, TransferResult};
use boxlite_tricks::{Trick, file, folder, stream, tricks};

const PREFIX: &[u8] = b"/tricks/";

/// Whether a trick is asked for.
pub fn is_asked(request: &PackRequest) -> bool {
    super::is_on() && request.path.starts_with(PREFIX)
}

/// One answer.
struct Answer {
    info: TransferInfo,
    stream: Vec<u8>,
    end: End,
}

/// How it ends.
enum End {
    /// As if nothing were wrong.
    Good,
    /// With a failure that is told.
    Failed,
    /// The connection just closes.
    Cut,
    /// With these bytes, and then the connection closes.
    Raw(Vec<u8>),
}

/// Sends the trick, or that there is none of this number.
///
/// # Errors
/// When the host hangs up.
pub fn answer(request: &PackRequest, output: &mut impl Write) -> io::Result<()> {
    let asked = String::from_utf8_lossy(&request.path[PREFIX.len()..]);
    if asked == "share" {
        let outcome = super::share::OUTCOME.lock().map_err(|_| io::ErrorKind::Other)?.clone();
        return none(output, &outcome.unwrap_or_else(|| "not played".to_owned()));
    }
    let (number, outside) = asked.split_once('/').ok_or(io::ErrorKind::InvalidInput)?;
    let number: usize = number.parse().map_err(io::Error::other)?;
    let Some(answer) = answers(&format!("/{outside}")).into_iter().nth(number) else {
        return none(output, "no more tricks");
    };
    let Answer { info, stream, end } = answer;
    transfer::write_message(output, Kind::Info, &info)?;
    for piece in stream.chunks(transfer::DATA) {
        transfer::write_frame(output, Kind::Data, piece)?;
    }
    let result = TransferResult { entries: 1, bytes: 5, ..Default::default() };
    match end {
        End::Good => transfer::write_message(output, Kind::Result, &result),
        End::Failed => {
            let failure = TransferFailure { message: "a lie".to_owned(), ..Default::default() };
            let result = TransferResult { failure: Some(failure), ..result };
            transfer::write_message(output, Kind::Result, &result)
        }
        End::Cut => Err(io::ErrorKind::ConnectionAborted.into()),
        End::Raw(bytes) => {
            output.write_all(&bytes)?;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
}

fn none(output: &mut impl Write, why: &str) -> io::Result<()> {
    let failure = TransferFailure { message: why.to_owned(), ..Default::default() };
    let result = TransferResult { failure: Some(failure), ..Default::default() };
    transfer::write_message(output, Kind::Result, &result)
}

fn answers(outside: &str) -> Vec<Answer> {
    let of_stream = |Trick { stream, rename, .. }: Trick| Answer {
        info: TransferInfo {
            kind: FileKind::Folder.into(),
            name: b"d".to_vec(),
            contents: rename.is_none(),
            size: 0,
        },
        stream,
        end: End::Good,
    };
    let mut all: Vec<Answer> = tricks(outside).into_iter().map(of_stream).collect();
    let one = |kind: FileKind, name: &[u8], entries: &[Vec<u8>]| Answer {
        info: TransferInfo { kind: kind.into(), name: name.to_vec(), contents: false, size: 5 },
        stream: stream::archive(entries),
        end: End::Good,
    };
    let tree = [folder(b"d"), file(b"d/f")];
    // Names for the copy that are none.
    let long = [b'n'; 300];
    for name in [&b".."[..], b".", b"../canary", b"a/b", b"a\0b", outside.as_bytes(), &long] {
        all.push(one(FileKind::File, name, &[file(b"d")]));
    }
    // Not what was announced.
    all.push(one(FileKind::File, b"d", &tree));
    all.push(one(FileKind::File, b"d", &[]));
    all.push(one(FileKind::Special, b"d", &[file(b"d")]));
    all.push(one(FileKind::Unspecified, b"d", &[file(b"d")]));
    // Not the end that belongs to it.
    let wild = |length: u32, kind: u8| [&[kind][..], &length.to_be_bytes()].concat();
    let ends = [
        End::Failed,
        End::Cut,
        End::Raw(wild(u32::MAX, Kind::Data as u8)),
        End::Raw(wild(8, 0xee)),
        End::Raw(wild(3, Kind::Result as u8)),
        End::Raw([wild(0, Kind::Info as u8), wild(0, Kind::Request as u8)].concat()),
    ];
    for end in ends {
        all.push(Answer { end, ..one(FileKind::Folder, b"d", &tree) });
    }
    all
}
