//! Whose files are whose: the caller on the host is the container's user in the guest.
//!
//! ```text
//!                    host              guest
//!   caller           host.0  ◀──────▶  guest.0
//!   the other one    guest.0 ◀──────▶  host.0     only with privileges: a swap is its own inverse
//!   all others       n       ◀──────▶  n
//! ```
//!
//! Without privileges nothing can be given away, so the swap would only lie: other ids show as they are, and a chown to
//! them is refused.

/// How owners are shown to the guest, and what it may make them. See the module `owner` of the sources for a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerMap {
    /// The user and group on the host on whose behalf the box runs.
    pub host: (u32, u32),
    /// The user and group that they are in the guest.
    pub guest: (u32, u32),
    /// Whether this process may give files to others, as root can. If not, all that is made belongs to this process.
    pub privileged: bool,
}

/// One of the two kinds of ids.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdMap {
    host: u32,
    guest: u32,
    privileged: bool,
}

impl OwnerMap {
    pub(crate) fn users(&self) -> IdMap {
        IdMap { host: self.host.0, guest: self.guest.0, privileged: self.privileged }
    }

    pub(crate) fn groups(&self) -> IdMap {
        IdMap { host: self.host.1, guest: self.guest.1, privileged: self.privileged }
    }
}

impl IdMap {
    /// The guest's id for one of the host.
    pub(crate) fn show(self, host: u32) -> u32 {
        if host == self.host {
            self.guest
        } else if self.privileged && host == self.guest {
            self.host
        } else {
            host
        }
    }

    /// The host's id of what the guest has made, if it is not simply that of this process.
    pub(crate) fn created(self, guest: u32) -> Option<u32> {
        self.privileged.then(|| self.swap(guest))
    }

    /// The host's id for a chown, if one is needed. `Err`: it must not happen.
    pub(crate) fn changed(self, current_host: u32, guest: u32) -> Result<Option<u32>, Forbidden> {
        if guest == self.show(current_host) {
            Ok(None)
        } else if self.privileged {
            Ok(Some(self.swap(guest)))
        } else if guest == self.guest {
            Ok(Some(self.host))
        } else {
            Err(Forbidden)
        }
    }

    fn swap(self, guest: u32) -> u32 {
        if guest == self.guest {
            self.host
        } else if guest == self.host {
            self.guest
        } else {
            guest
        }
    }
}

/// A file cannot be given to that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forbidden;

#[cfg(test)]
mod tests {
    use super::*;

    fn map(privileged: bool) -> IdMap {
        OwnerMap { host: (1000, 1000), guest: (0, 0), privileged }.users()
    }

    #[test]
    fn with_privileges_showing_and_creating_are_inverse() {
        let map = map(true);
        for host in [0, 1, 1000, 1001, u32::MAX] {
            assert_eq!(map.created(map.show(host)), Some(host));
        }
        assert_eq!((map.show(1000), map.show(0)), (0, 1000));
    }

    #[test]
    fn without_privileges_only_the_caller_can_be_made_an_owner() {
        let map = map(false);
        assert_eq!((map.show(1000), map.show(0), map.show(7)), (0, 0, 7));
        assert_eq!(map.created(0), None);
        assert_eq!(map.changed(1000, 0), Ok(None));
        assert_eq!(map.changed(7, 7), Ok(None));
        assert_eq!(map.changed(7, 0), Ok(Some(1000)));
        assert_eq!(map.changed(1000, 1000), Err(Forbidden));
        assert_eq!(map.changed(1000, 7), Err(Forbidden));
    }

    #[test]
    fn equal_ids_map_to_themselves() {
        let map = OwnerMap { host: (5, 6), guest: (5, 6), privileged: true };
        assert_eq!((map.users().show(5), map.groups().show(6)), (5, 6));
        assert_eq!((map.users().created(5), map.groups().created(9)), (Some(5), Some(9)));
    }
}
