//! Templates of output, in the part of Go's language that people use: text with `{{.Field}}` and `{{json .}}`.

use serde_json::Value;

/// A template.
#[derive(Debug)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug)]
enum Part {
    Text(String),
    Field(String),
    Json(Option<String>),
}

impl Template {
    /// Reads a template; a text without a field is none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let bad = |what: &str| {
            Err(format!(
                "{what} in the format `{}`: use table, json or a template such as '{{{{.ID}}}}'",
                text.escape_debug()
            ))
        };
        let mut parts = Vec::new();
        // As in a shell's word, where nobody can type them otherwise.
        let unescaped = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut rest = unescaped.as_str();
        while let Some(start) = rest.find("{{") {
            let Some(length) = rest[start..].find("}}") else { return bad("a `{{` is not closed") };
            parts.push(Part::Text(rest[..start].to_owned()));
            let inside = rest[start + 2..start + length].trim();
            let words: Vec<&str> = inside.split_ascii_whitespace().collect();
            parts.push(match words.as_slice() {
                ["json", "."] => Part::Json(None),
                ["json", field] if field.starts_with('.') => Part::Json(Some(field[1..].to_owned())),
                [field] if field.len() > 1 && field.starts_with('.') => Part::Field(field[1..].to_owned()),
                _ => return bad(&format!("`{inside}` is not understood")),
            });
            rest = &rest[start + length + 2..];
        }
        if parts.is_empty() {
            return bad("there is no field");
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    /// Fills the fields of an object in.
    pub(crate) fn fill(&self, object: &Value) -> Result<String, String> {
        let field = |name: &str| {
            object.get(name).ok_or_else(|| {
                let known: Vec<&str> =
                    object.as_object().into_iter().flat_map(|map| map.keys().map(String::as_str)).collect();
                format!("there is no field `{}`: use {}", name.escape_debug(), known.join(", "))
            })
        };
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field(name) => match field(name)? {
                    Value::String(text) => out.push_str(text),
                    other => out.push_str(&other.to_string()),
                },
                Part::Json(None) => out.push_str(&object.to_string()),
                Part::Json(Some(name)) => out.push_str(&field(name)?.to_string()),
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_filled_in() {
        let object = json!({"ID": "ab", "Restarts": 3});
        for (template, expected) in [
            ("{{.ID}}", "ab"),
            ("{{ .ID }}\\t{{.Restarts}}!", "ab\t3!"),
            ("{{json .}}", r#"{"ID":"ab","Restarts":3}"#),
            ("{{json .ID}}", "\"ab\""),
        ] {
            assert_eq!(Template::parse(template).unwrap().fill(&object).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in ["tabel", "{{.ID", "{{range .}}", "{{}}", "{{.}}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
        let error = Template::parse("{{.Id}}").unwrap().fill(&json!({"ID": 1})).unwrap_err();
        assert!(error.contains("`Id`") && error.contains("ID"), "{error}");
    }
}
