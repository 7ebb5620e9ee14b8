//! Answers that are still true.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

/// The most answers, and the most records of one that is kept.
const ANSWERS: usize = 4096;
const RECORDS: usize = 64;
/// How long a name that is not there is not there, unless its zone says less (RFC 2308), and the longest that anything is
/// kept.
const NEGATIVE: u32 = 30;
const LONGEST: u32 = 3600;

/// What was asked for.
pub(super) type Asked = (String, RecordType);

/// What a server has said.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) code: ResponseCode,
    pub(super) records: Vec<Record>,
    at: Instant,
    lives: Duration,
}

/// The answers.
#[derive(Debug, Default)]
pub(super) struct Cache {
    answers: HashMap<Asked, Known>,
    /// In the order in which they came.
    order: VecDeque<Asked>,
}

impl Known {
    /// What a server says now.
    pub(super) fn new(answer: Message, now: Instant) -> Self {
        let shortest = answer.answers.iter().map(|record| record.ttl).min();
        let soa = answer.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
            _ => None,
        });
        let lives = shortest.unwrap_or_else(|| soa.unwrap_or(NEGATIVE).min(NEGATIVE)).min(LONGEST);
        Self {
            code: answer.metadata.response_code,
            records: answer.answers,
            at: now,
            lives: Duration::from_secs(lives.into()),
        }
    }

    /// The records as they are now: what is left of their lives.
    fn aged(&self, now: Instant) -> Self {
        let age = u32::try_from(now.saturating_duration_since(self.at).as_secs()).unwrap_or(u32::MAX);
        let mut aged = self.clone();
        for record in &mut aged.records {
            record.decrement_ttl(age);
        }
        aged
    }
}

impl Cache {
    /// What is known.
    pub(super) fn get(&self, asked: &Asked, now: Instant) -> Option<Known> {
        let known = self.answers.get(asked)?;
        (now < known.at + known.lives).then(|| known.aged(now))
    }

    /// Keeps an answer. Failures, and answers that do not live, are not kept.
    pub(super) fn put(&mut self, asked: Asked, known: &Known) {
        let certain = matches!(known.code, ResponseCode::NoError | ResponseCode::NXDomain);
        if !certain || known.lives.is_zero() || known.records.len() > RECORDS {
            return;
        }
        if self.answers.insert(asked.clone(), known.clone()).is_none() {
            self.order.push_back(asked);
        }
        while self.answers.len() > ANSWERS
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::Name;

    fn answer(ttls: &[u32]) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        for ttl in ttls {
            let data = RData::A(std::net::Ipv4Addr::new(1, 2, 3, 4).into());
            message.answers.push(Record::from_rdata(Name::from_ascii("a.example.").unwrap(), *ttl, data));
        }
        message
    }

    fn asked(name: &str) -> Asked {
        (name.to_owned(), RecordType::A)
    }

    #[test]
    fn an_answer_ages_and_dies_with_its_first_record() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.put(asked("a"), &Known::new(answer(&[100, 60]), start));
        let later = cache.get(&asked("a"), start + Duration::from_secs(59)).unwrap();
        assert_eq!(later.records.iter().map(|record| record.ttl).collect::<Vec<_>>(), [41, 1]);
        assert!(cache.get(&asked("a"), start + Duration::from_secs(60)).is_none());
        assert!(cache.get(&asked("b"), start).is_none());
    }

    #[test]
    fn nothing_is_kept_that_does_not_live_or_is_a_failure() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(asked("a"), &Known::new(answer(&[0]), now));
        let mut failed = answer(&[100]);
        failed.metadata.response_code = ResponseCode::ServFail;
        cache.put(asked("b"), &Known::new(failed, now));
        assert!(cache.answers.is_empty());
        // A name that is not there is not there for a while.
        cache.put(asked("c"), &Known::new(answer(&[]), now));
        assert!(cache.get(&asked("c"), now + Duration::from_secs(29)).is_some());
    }

    #[test]
    fn a_flood_of_names_is_bounded() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for number in 0..ANSWERS + 100 {
            cache.put(asked(&number.to_string()), &Known::new(answer(&[100]), now));
        }
        assert_eq!((cache.answers.len(), cache.order.len()), (ANSWERS, ANSWERS));
        assert!(cache.get(&asked("0"), now).is_none());
    }
}
