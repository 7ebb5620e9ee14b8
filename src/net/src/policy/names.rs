//! The rules by name.

use std::borrow::Cow;
use std::collections::HashMap;

use boxlite_control::{NetworkRule, NetworkTarget};

use super::book::{Book, First, Kind, Look};

/// The longest name of the domain name system, without a dot at the end.
pub(super) const MAX_NAME: usize = 253;
/// The longest label of such a name.
const MAX_LABEL: usize = 63;

/// Finds the rules that fit a name, in a time that grows with how many labels the longest name of a rule has.
#[derive(Debug, Default)]
pub(super) struct Names {
    books: HashMap<Box<str>, Books>,
    /// How many labels the longest name has: nothing is found for more.
    labels: usize,
}

#[derive(Debug, Default)]
struct Books {
    name: Book,
    below: Book,
}

/// A name's rules: those about it, and those about what is below a name.
type Grouped<'a> = [Vec<(u32, &'a NetworkRule)>; 2];

impl Names {
    /// Of those rules that are about names; all of them have their places, in order.
    pub(super) fn new<'a>(rules: impl Iterator<Item = (u32, &'a NetworkRule)>) -> Self {
        let mut grouped: HashMap<Box<str>, Grouped<'_>> = HashMap::new();
        for (at, rule) in rules {
            let (name, below) = match &rule.target {
                NetworkTarget::Name(name) => (name, false),
                NetworkTarget::Below(name) => (name, true),
                NetworkTarget::Any | NetworkTarget::Block { .. } => continue,
            };
            let [about, beneath] = grouped.entry(plain(name).into()).or_default();
            if below { beneath } else { about }.push((at, rule));
        }
        let labels = grouped.keys().map(|name| name.split('.').count()).max().unwrap_or(0);
        let book = |rules: &[(u32, &NetworkRule)]| Book::new(rules, Kind::Name);
        let books = grouped.into_iter();
        let books =
            books.map(|(name, [about, below])| (name, Books { name: book(&about), below: book(&below) }));
        Self { books: books.collect(), labels }
    }

    /// The first rules about this very name.
    pub(super) fn exact(&self, name: &str, look: Look) -> First {
        self.books.get(name).map_or(First::NONE, |books| books.name.first(look))
    }

    /// The first rules about what is below one of the names that this one ends in.
    pub(super) fn below(&self, name: &str, look: Look) -> First {
        let ends = name.rmatch_indices('.').take(self.labels).filter_map(|(dot, _)| name.get(dot + 1..));
        let books = ends.filter_map(|end| self.books.get(end));
        books.map(|books| books.below.first(look)).fold(First::NONE, First::min)
    }
}

/// The one spelling of a name: lower case, without a dot at the end.
pub(super) fn plain(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// Whether it can be the name of a host: a server may read another name out of one that cannot.
pub(super) fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= MAX_NAME && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::book::NONE;
    use boxlite_control::NetworkVerdict;

    #[test]
    fn a_name_is_found_by_itself_and_by_what_it_ends_in() {
        let rules: Vec<NetworkRule> = ["a.example", "*.example", "*.a.example", "*.b.a.example", "Example."]
            .map(|text| NetworkRule::parse(NetworkVerdict::Allow, text).unwrap())
            .into();
        let names = Names::new((0..).zip(&rules));
        let found = |name| (names.exact(name, Look::Ever).allow, names.below(name, Look::Ever).allow);
        assert_eq!(found("a.example"), (0, 1));
        assert_eq!(found("c.example"), (NONE, 1));
        assert_eq!(found("c.b.a.example"), (NONE, 1));
        assert_eq!(found("example"), (4, NONE));
        assert_eq!(found("aexample"), (NONE, NONE));
        assert_eq!(found("example.com"), (NONE, NONE));
        assert_eq!(found(""), (NONE, NONE));
        assert_eq!(found("..."), (NONE, NONE));
        assert_eq!(found(&format!("{}example", "a.".repeat(10_000))), (NONE, 1));
    }

    #[test]
    fn a_name_that_a_server_may_read_otherwise_is_none() {
        let long = "a".repeat(64);
        for name in
            ["", ".", "a..b", "a.", "a b", "a\0b", "a:80", "user@a", "a/b", "a,b", "[::1]", "\u{fc}", &long]
        {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_name("_a.-b-.xn--c"));
        assert_eq!(plain("A.Example."), "a.example");
    }
}
