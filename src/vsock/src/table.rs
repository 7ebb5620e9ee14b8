//! The connections of a device, found by ports or by token, and the order in which they may send to the guest.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::MAX_CONNECTIONS;
use crate::connection::Connection;
use crate::host::HostEnd;
use crate::packet::Ports;

/// The first host port for connections that the host opens; below are the ports that the guest may dial.
pub(crate) const FIRST_PORT: u32 = 1 << 30;

/// Names a connection for as long as it lives, and nothing after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// Never zero.
    generation: u32,
    index: u32,
}

impl Token {
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// `None`: the number is below 2^32, which leaves those for others to use.
    #[allow(clippy::cast_possible_truncation, reason = "takes the number apart")]
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        let token = Self { generation: (bits >> 32) as u32, index: bits as u32 };
        (token.generation != 0).then_some(token)
    }
}

/// A connection and its two ends.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) token: Token,
    pub(crate) ports: Ports,
    pub(crate) connection: Connection,
    pub(crate) host: HostEnd,
    /// The guest has owed an answer since then.
    pub(crate) waiting_since: Option<Instant>,
    /// The last read from the host brought all that was asked for, so there is probably much more.
    pub(crate) bulk: bool,
    listed: bool,
    queued: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, u32>,
    /// Whose turn it is. Each connection is in here once at most.
    turns: VecDeque<u32>,
    generation: u32,
    next_port: u32,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= MAX_CONNECTIONS
    }

    /// A pair of ports, to this one of the guest, that no connection has.
    pub(crate) fn unused_ports(&mut self, guest: u32) -> Ports {
        loop {
            // There are 2^30 of them and fewer connections, so this ends.
            let host = FIRST_PORT + self.next_port % FIRST_PORT;
            self.next_port = self.next_port.wrapping_add(1);
            let ports = Ports { host, guest };
            if !self.by_ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    /// Adds a connection; the table must not be full, and the ports not be in use.
    pub(crate) fn insert(&mut self, ports: Ports, connection: Connection, host: HostEnd) -> &mut Entry {
        debug_assert!(!self.is_full() && !self.by_ports.contains_key(&ports));
        self.generation = self.generation.wrapping_add(1).max(1);
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        self.by_ports.insert(ports, index);
        self.entries[at(index)].insert(Entry {
            token: Token { generation: self.generation, index },
            ports,
            connection,
            host,
            waiting_since: None,
            bulk: false,
            listed: true,
            queued: false,
        })
    }

    pub(crate) fn get(&mut self, token: Token) -> Option<&mut Entry> {
        self.entries.get_mut(at(token.index))?.as_mut().filter(|entry| entry.token == token)
    }

    pub(crate) fn find(&mut self, ports: Ports) -> Option<&mut Entry> {
        let index = *self.by_ports.get(&ports)?;
        self.entries[at(index)].as_mut()
    }

    pub(crate) fn tokens(&self) -> Vec<Token> {
        self.entries.iter().flatten().map(|entry| entry.token).collect()
    }

    /// Does what a change of the connection asks for: its turn to send, its ports, its end.
    ///
    /// Returns the entry if that was its end.
    pub(crate) fn update(&mut self, token: Token) -> Option<Entry> {
        let slot = self.entries.get_mut(at(token.index))?;
        let entry = slot.as_mut().filter(|entry| entry.token == token)?;
        if entry.connection.is_gone() && entry.listed {
            entry.listed = false;
            self.by_ports.remove(&entry.ports);
        }
        if entry.connection.is_finished() {
            if entry.queued {
                self.turns.retain(|index| *index != token.index);
            }
            self.free.push(token.index);
            return slot.take();
        }
        if entry.connection.wants_to_send() && !entry.queued {
            entry.queued = true;
            self.turns.push_back(token.index);
        }
        None
    }

    /// The connection whose turn it is to send to the guest. Afterwards [`update`](Self::update) it.
    pub(crate) fn next_turn(&mut self) -> Option<Token> {
        while let Some(index) = self.turns.pop_front() {
            // Connections leave the queue when they end, so there is one.
            if let Some(entry) = self.entries[at(index)].as_mut() {
                entry.queued = false;
                if entry.connection.wants_to_send() {
                    return Some(entry.token);
                }
            }
        }
        None
    }

    /// The turn could not be taken: it comes first again.
    pub(crate) fn return_turn(&mut self, token: Token) {
        if let Some(entry) = self.get(token)
            && !std::mem::replace(&mut entry.queued, true)
        {
            self.turns.push_front(token.index);
        }
    }
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::packet::Credit;

    fn host() -> HostEnd {
        HostEnd::accepted(UnixStream::pair().unwrap().0).unwrap()
    }

    fn dialed_by_guest(table: &mut Table, guest: u32) -> Token {
        let connection = Connection::dialed_by_guest(1024, Credit::default());
        let token = table.insert(Ports { host: 1, guest }, connection, host()).token;
        assert!(table.update(token).is_none());
        token
    }

    #[test]
    fn connections_take_turns_in_the_order_in_which_they_asked() {
        let mut table = Table::default();
        let tokens: Vec<_> = (0..3).map(|port| dialed_by_guest(&mut table, port)).collect();
        table.update(tokens[0]);
        assert_eq!(table.next_turn(), Some(tokens[0]));
        table.return_turn(tokens[0]);
        for token in tokens {
            assert_eq!(table.next_turn(), Some(token));
        }
        assert_eq!(table.next_turn(), None);
    }

    #[test]
    fn a_connection_that_ends_leaves_no_turn_and_its_token_names_nothing() {
        let mut table = Table::default();
        for _ in 0..1000 {
            let token = dialed_by_guest(&mut table, 7);
            table.get(token).unwrap().connection.abandoned();
            assert!(table.update(token).is_some());
            assert!(table.get(token).is_none());
            assert!(table.turns.is_empty(), "a turn stays behind");
        }
        assert_eq!((table.len(), table.entries.len()), (0, 1));
        assert!(table.by_ports.is_empty());
    }

    #[test]
    fn a_token_of_the_past_does_not_reach_the_connection_in_its_place() {
        let mut table = Table::default();
        let old = dialed_by_guest(&mut table, 7);
        table.get(old).unwrap().connection.abandoned();
        table.update(old);
        let new = dialed_by_guest(&mut table, 7);
        assert_eq!(old.index, new.index);
        assert!(table.get(old).is_none());
        assert_eq!(Token::from_bits(new.to_bits()), Some(new));
    }

    #[test]
    fn host_ports_are_not_used_twice() {
        let mut table = Table::default();
        let first = table.unused_ports(9);
        table.insert(first, Connection::dialed_by_host(1024), host());
        table.next_port = 0;
        assert_ne!(table.unused_ports(9), first);
        assert_eq!(Token::from_bits(u64::from(u32::MAX)), None);
    }
}
