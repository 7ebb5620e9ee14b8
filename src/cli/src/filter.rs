//! Filters of lists, as Docker has them: values of one key are alternatives, different keys must all fit, and so must
//! several labels.

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Filters(Vec<(String, Vec<String>)>);

impl Filters {
    /// Reads `key=value` texts whose keys are among these.
    pub(crate) fn parse(texts: &[String], keys: &[&str]) -> Result<Self, String> {
        let mut filters = Self::default();
        for text in texts {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| format!("`{}` is no filter: use key=value", text.escape_debug()))?;
            if !keys.contains(&key) {
                return Err(format!("there is no filter `{}`: use {}", key.escape_debug(), keys.join(", ")));
            }
            match filters.0.iter_mut().find(|(known, _)| known == key && key != "label") {
                Some((_, values)) => values.push(value.to_owned()),
                None => filters.0.push((key.to_owned(), vec![value.to_owned()])),
            }
        }
        Ok(filters)
    }

    /// Whether there is one of this key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(known, _)| known == key)
    }

    /// Whether something fits, of which `fits` says whether it fits one value of a key.
    pub(crate) fn fit(&self, fits: impl Fn(&str, &str) -> bool) -> bool {
        self.0.iter().all(|(key, values)| values.iter().any(|value| fits(key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(texts: &[&str], have: &[(&str, &str)]) -> bool {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let filters = Filters::parse(&texts, &["name", "status", "label"]).unwrap();
        filters.fit(|key, value| have.contains(&(key, value)))
    }

    #[test]
    fn values_of_a_key_are_alternatives_and_keys_are_not() {
        let have = [("name", "a"), ("status", "up"), ("label", "x"), ("label", "y")];
        assert!(fits(&[], &have));
        assert!(fits(&["name=a", "name=b"], &have));
        assert!(fits(&["name=a", "status=up"], &have));
        assert!(!fits(&["name=a", "status=down"], &have));
        assert!(fits(&["label=x", "label=y"], &have));
        assert!(!fits(&["label=x", "label=z"], &have));
    }

    #[test]
    fn unknown_keys_are_refused_and_known_ones_named() {
        let error = Filters::parse(&["colour=red".to_owned()], &["name"]).unwrap_err();
        assert!(error.contains("`colour`") && error.contains("name"), "{error}");
        assert!(Filters::parse(&["name".to_owned()], &["name"]).is_err());
    }
}
