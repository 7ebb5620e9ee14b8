//! JSON as security wants it: a key that stands twice, or that nobody asked for, is an error of the whole document.
//!
//! Where two readers of a document could see different things in it, one of them can be deceived.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::error::{Malformed, shown};

/// A document. Numbers and truth values are in none that is read here, so what they are is not kept.
#[derive(Debug)]
pub(super) enum Json {
    Null,
    Scalar,
    Text(String),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// Reads `bytes`. How deep it may nest is `serde_json`'s limit of 128; how large it may be is the caller's to say.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        serde_json::from_slice(bytes).map_err(|error| Malformed::new(shown(&error.to_string())))
    }

    pub(super) fn object(self) -> Result<Fields, Malformed> {
        match self {
            Self::Object(fields) => Ok(Fields(fields)),
            _ => Err(Malformed::new("it is no object")),
        }
    }

    pub(super) fn list(self) -> Result<Vec<Self>, Malformed> {
        match self {
            Self::List(list) => Ok(list),
            _ => Err(Malformed::new("it is no list")),
        }
    }

    pub(super) fn text(self) -> Result<String, Malformed> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(Malformed::new("it is no text")),
        }
    }
}

/// The fields of an object, taken out one by one.
#[derive(Debug)]
pub(super) struct Fields(BTreeMap<String, Json>);

impl Fields {
    /// A field that may be missing. One that is there and `null` is there.
    pub(super) fn take(&mut self, name: &str) -> Option<Json> {
        self.0.remove(name)
    }

    pub(super) fn need(&mut self, name: &str) -> Result<Json, Malformed> {
        self.take(name).ok_or_else(|| Malformed::new(format!("`{name}` is missing")))
    }

    /// A text that may be missing, but not be empty.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Malformed> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let text = value.text().map_err(|error| error.within(format_args!("`{name}`")))?;
        if text.is_empty() {
            return Err(Malformed::new(format!("`{name}` is empty")));
        }
        Ok(Some(text))
    }

    /// A list of texts that may be missing, but neither be empty nor hold an empty one.
    pub(super) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, Malformed> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let texts =
            value.list().and_then(|list| list.into_iter().map(Self::full).collect::<Result<Vec<_>, _>>());
        let texts = texts.map_err(|error| error.within(format_args!("`{name}`")))?;
        if texts.is_empty() {
            return Err(Malformed::new(format!("`{name}` is empty")));
        }
        Ok(Some(texts))
    }

    fn full(value: Json) -> Result<String, Malformed> {
        let text = value.text()?;
        if text.is_empty() { Err(Malformed::new("a text is empty")) } else { Ok(text) }
    }

    /// What was not taken.
    pub(super) fn rest(self) -> BTreeMap<String, Json> {
        self.0
    }

    /// Everything must have been taken.
    pub(super) fn end(self) -> Result<(), Malformed> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(Malformed::new(format!("the key `{}` is unknown", shown(key)))),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Scalar)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut object = BTreeMap::new();
        while let Some(key) = entries.next_key::<String>()? {
            match object.entry(key) {
                Entry::Occupied(twice) => {
                    return Err(A::Error::custom(format_args!(
                        "the key `{}` stands twice",
                        shown(twice.key())
                    )));
                }
                Entry::Vacant(new) => new.insert(entries.next_value()?),
            };
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_an_error_however_deep_or_spelled() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"x":{"a":1,"b":2,"a":null}}]"#, r#"{"a":1,"\u0061":2}"#] {
            let error = Json::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("the key `a` stands twice"), "{error}");
        }
        assert!(Json::parse(br#"{"a":1,"A":1}"#).is_ok());
    }

    #[test]
    fn what_is_no_json_is_an_error() {
        for text in ["", "{", "{}{}", "{} x", "[1,]", "{'a':1}", "nul", "\u{feff}{}", "// no\n{}", "\"\n\""] {
            assert!(Json::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Json::parse(b"\"\xff\"").is_err());
    }

    #[test]
    fn nesting_without_end_is_an_error_and_no_overflow() {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let deep = open.repeat(1_000_000);
            assert!(Json::parse(deep.as_bytes()).unwrap_err().to_string().contains("recursion limit"));
            let fair = format!("{}0{}", open.repeat(100), close.repeat(100));
            assert!(Json::parse(fair.as_bytes()).is_ok());
        }
    }

    #[test]
    fn a_field_that_nobody_took_is_unknown() {
        let mut fields = Json::parse(br#"{"a":"x","b\n":"y"}"#).unwrap().object().unwrap();
        assert_eq!(fields.text("a").unwrap().as_deref(), Some("x"));
        assert_eq!(fields.end().unwrap_err().to_string(), "the key `b\\n` is unknown");
    }

    #[test]
    fn a_text_must_be_a_text_that_says_something() {
        for value in ["null", "1", "true", "[]", "{}", r#""""#] {
            let document = format!(r#"{{"a":{value}}}"#);
            let fields = || Json::parse(document.as_bytes()).unwrap().object().unwrap();
            assert!(fields().text("a").is_err(), "{value}");
            assert!(fields().texts("a").is_err(), "{value}");
        }
        let mut fields = Json::parse(br#"{"a":["x",""]}"#).unwrap().object().unwrap();
        assert!(fields.texts("a").is_err());
        assert!(fields.text("b").unwrap().is_none());
    }
}
