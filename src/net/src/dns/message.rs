//! Questions of the guest, read, and answers to them, written.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

/// What a datagram carries unless its sender says more (RFC 1035), and the most that is sent whatever it says.
const PLAIN: usize = 512;
const MOST: u16 = 4096;
/// What we take in a datagram (the value of the DNS flag day 2020).
const OURS: u16 = 1232;
/// The longest question.
const QUESTION: usize = 4096;
/// The header of a message.
const HEADER: usize = 12;

/// A question, read.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) query: Query,
    id: u16,
    recursion: bool,
    edns: bool,
    /// The longest answer, in bytes.
    limit: usize,
}

/// What a message is.
#[derive(Debug)]
pub(super) enum Read {
    Question(Box<Asked>),
    /// It is answered at once.
    Answer(Vec<u8>),
    /// It is answered by silence.
    Nothing,
}

/// Reads a message. `stream`: it came over one.
pub(super) fn read(bytes: &[u8], stream: bool) -> Read {
    // An answer to an answer could go on for ever.
    let (Some(header), true) = (bytes.first_chunk::<HEADER>(), bytes.len() <= QUESTION) else {
        return Read::Nothing;
    };
    if header[2] & 0x80 != 0 {
        return Read::Nothing;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let refused = |code| {
        let answer = Message::error_msg(id, OpCode::Query, code).to_vec();
        answer.map_or(Read::Nothing, Read::Answer)
    };
    let Ok(message) = Message::from_vec(bytes) else { return refused(ResponseCode::FormErr) };
    if message.metadata.message_type != MessageType::Query || message.metadata.op_code != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    let [query] = &message.queries[..] else { return refused(ResponseCode::FormErr) };
    let said = message.edns.as_ref().map(|edns| edns.max_payload().min(MOST));
    let limit = match (stream, said) {
        (true, _) => usize::from(u16::MAX),
        (false, said) => said.map_or(PLAIN, |said| usize::from(said).max(PLAIN)),
    };
    Read::Question(Box::new(Asked {
        query: query.clone(),
        id,
        recursion: message.metadata.recursion_desired,
        edns: message.edns.is_some(),
        limit,
    }))
}

impl Asked {
    /// Of which class and kind.
    pub(super) fn class(&self) -> DNSClass {
        self.query.query_class
    }

    /// The kind of record.
    pub(super) fn kind(&self) -> RecordType {
        self.query.query_type
    }

    /// The name as policies have it.
    pub(super) fn name(&self) -> String {
        text(&self.query.name)
    }

    /// Writes an answer. One that is too long says so, and has no records.
    pub(super) fn answer(&self, code: ResponseCode, records: &[Record]) -> Vec<u8> {
        let message = |records: &[Record], truncated: bool| {
            let mut message = Message::response(self.id, OpCode::Query);
            message.metadata.recursion_desired = self.recursion;
            message.metadata.recursion_available = true;
            message.metadata.response_code = code;
            message.metadata.truncation = truncated;
            message.queries.push(self.query.clone());
            message.answers.extend_from_slice(records);
            if self.edns {
                let mut edns = Edns::new();
                edns.set_max_payload(OURS);
                message.edns = Some(edns);
            }
            // What cannot be written is answered by silence.
            message.to_vec().unwrap_or_default()
        };
        let whole = message(records, false);
        if whole.len() <= self.limit { whole } else { message(&[], true) }
    }
}

/// A name in lower case, without a dot at the end. What is no letter, digit, hyphen or underscore is escaped, so that no
/// name can pass for another one.
pub(super) fn text(name: &Name) -> String {
    let mut text = name.to_ascii().to_ascii_lowercase();
    if text.len() > 1 && text.ends_with('.') {
        text.pop();
    }
    text
}

/// A question for a server of the host.
pub(super) fn question(id: u16, name: &Name, kind: RecordType) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = name.clone();
    name.set_fqdn(true);
    message.queries.push(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(OURS);
    message.edns = Some(edns);
    message.to_vec().ok()
}

/// The answer of a server, if it is one to this question.
pub(super) fn answer_to(id: u16, name: &Name, kind: RecordType, bytes: &[u8]) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let [query] = &message.queries[..] else { return None };
    let fits = message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && query.query_type == kind
        && text(&query.name) == text(name);
    fits.then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::RData;
    use proptest::prelude::*;

    fn asked(name: &str, payload: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.queries.push(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.edns = Some(edns);
        }
        message.to_vec().unwrap()
    }

    fn question_of(bytes: &[u8], stream: bool) -> Asked {
        match read(bytes, stream) {
            Read::Question(asked) => *asked,
            other => panic!("{other:?}"),
        }
    }

    fn records(name: &str, count: u8) -> Vec<Record> {
        let name = Name::from_ascii(name).unwrap();
        let address = |last| RData::A(std::net::Ipv4Addr::new(1, 2, 3, last).into());
        (0..count).map(|last| Record::from_rdata(name.clone(), 60, address(last))).collect()
    }

    #[test]
    fn an_answer_repeats_the_question_as_it_was_written() {
        let asked = question_of(&asked("wWw.Example.COM.", Some(1232)), false);
        assert_eq!(asked.name(), "www.example.com");
        let answer = asked.answer(ResponseCode::NoError, &records("www.example.com.", 2));
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.queries[0].name.to_ascii(), "wWw.Example.COM.");
        assert_eq!((answer.metadata.id, answer.answers.len()), (7, 2));
        assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
        assert!(answer.edns.is_some());
    }

    #[test]
    fn an_answer_that_does_not_fit_says_so() {
        let many = records("a.example.", 100);
        for (payload, stream, fits) in
            [(None, false, false), (Some(100), false, false), (Some(4096), false, true), (None, true, true)]
        {
            let asked = question_of(&asked("a.example.", payload), stream);
            let bytes = asked.answer(ResponseCode::NoError, &many);
            let answer = Message::from_vec(&bytes).unwrap();
            assert_eq!(answer.metadata.truncation, !fits, "{payload:?} {stream}");
            assert_eq!(answer.answers.len(), if fits { 100 } else { 0 });
        }
    }

    #[test]
    fn what_is_no_question_is_answered_by_an_error_or_not_at_all() {
        let whole = asked("a.example.", None);
        assert!(matches!(read(&whole[..11], false), Read::Nothing));
        assert!(matches!(read(&[0; 5000], false), Read::Nothing));
        let mut answer = whole.clone();
        answer[2] |= 0x80;
        assert!(matches!(read(&answer, false), Read::Nothing));
        let code = |bytes: &[u8]| match read(bytes, false) {
            Read::Answer(answer) => Message::from_vec(&answer).unwrap().metadata.response_code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(&whole[..20]), ResponseCode::FormErr);
        let mut update = whole.clone();
        update[2] |= 5 << 3;
        assert_eq!(code(&update), ResponseCode::NotImp);
        let mut two = whole.clone();
        two[5] = 0;
        assert_eq!(code(&two[..12]), ResponseCode::FormErr);
    }

    #[test]
    fn a_dot_within_a_label_does_not_divide_it() {
        let name = Name::from_labels([&b"evil.com"[..], b"example"]).unwrap();
        assert_eq!(text(&name), "evil\\.com.example");
    }

    #[test]
    fn only_the_answer_to_the_question_is_one() {
        let name = Name::from_ascii("a.example.").unwrap();
        let answer = question_of(&asked("A.example.", None), false).answer(ResponseCode::NoError, &[]);
        assert!(answer_to(7, &name, RecordType::A, &answer).is_some());
        assert!(answer_to(8, &name, RecordType::A, &answer).is_none());
        assert!(answer_to(7, &name, RecordType::AAAA, &answer).is_none());
        assert!(answer_to(7, &Name::from_ascii("b.example.").unwrap(), RecordType::A, &answer).is_none());
    }

    proptest! {
        #[test]
        fn no_message_is_too_strange_to_be_read(
            at in 0..40_usize,
            noise in proptest::collection::vec(any::<u8>(), 0..40),
            stream: bool,
        ) {
            let mut bytes = asked("www.example.com.", Some(1232));
            for (to, from) in bytes.iter_mut().skip(at).zip(noise) {
                *to = from;
            }
            match read(&bytes, stream) {
                Read::Answer(answer) => prop_assert!(answer[2] & 0x80 != 0),
                Read::Question(asked) => {
                    prop_assert!(asked.answer(ResponseCode::NXDomain, &[])[2] & 0x80 != 0);
                }
                Read::Nothing => {}
            }
        }
    }
}
