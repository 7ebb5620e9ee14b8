//! What a registry wants to see before it answers: the header `WWW-Authenticate`, RFC 9110, section 11.

use super::error::Failure;

/// The most bytes of all such headers of a response.
const CHALLENGE_MAX: usize = 16 << 10;

/// One way to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password with each request.
    Basic,
    /// A token, to be had at `realm`.
    Bearer { realm: String, service: Option<String> },
}

/// The best way that the headers offer: a token, which keeps the password from most requests, before the password.
pub(super) fn choose<'a>(headers: impl Iterator<Item = &'a [u8]>) -> Result<Option<Challenge>, Failure> {
    let mut best = None;
    let mut length = 0;
    for header in headers {
        length += header.len();
        let text = std::str::from_utf8(header).ok().filter(|_| length <= CHALLENGE_MAX);
        let broken = || Failure::protocol("the registry's header `WWW-Authenticate` is malformed");
        for challenge in parse(text.ok_or_else(broken)?).ok_or_else(broken)? {
            match challenge {
                Challenge::Bearer { .. } if !matches!(best, Some(Challenge::Bearer { .. })) => {
                    best = Some(challenge)
                }
                Challenge::Basic if best.is_none() => best = Some(challenge),
                _ => {}
            }
        }
    }
    Ok(best)
}

/// All challenges of a header that are of a known kind; `None` when it is malformed.
fn parse(text: &str) -> Option<Vec<Challenge>> {
    let mut rest = Rest(text);
    let mut challenges = Vec::new();
    rest.skip_commas();
    while !rest.0.is_empty() {
        let scheme = rest.token()?;
        let parameters = rest.parameters()?;
        let value = |name: &str| {
            parameters.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let realm = value("realm").filter(|realm| !realm.is_empty())?;
            challenges.push(Challenge::Bearer { realm, service: value("service") });
        }
        rest.skip_commas();
    }
    Some(challenges)
}

/// What has not been read yet.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn skip_spaces(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }

    fn skip_commas(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t', ',']);
    }

    fn token(&mut self) -> Option<&'a str> {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = self.0.find(|c| !is_token(c)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// The parameters of a challenge, up to its end: the end of the header, or a comma and the name of another scheme.
    fn parameters(&mut self) -> Option<Vec<(&'a str, String)>> {
        let mut parameters: Vec<(&str, String)> = Vec::new();
        if !self.0.is_empty() && !self.0.starts_with([' ', '\t', ',']) {
            return None;
        }
        loop {
            let before = self.0;
            self.skip_spaces();
            if self.0.is_empty() {
                return Some(parameters);
            }
            let comma = self.0.starts_with(',');
            // The first parameter follows the scheme without a comma, all others follow one.
            if !comma && !parameters.is_empty() {
                return None;
            }
            self.skip_commas();
            if self.0.is_empty() {
                return Some(parameters);
            }
            let name = self.token()?;
            self.skip_spaces();
            let Some(rest) = self.0.strip_prefix('=') else {
                // The name of the next scheme.
                self.0 = before;
                return comma.then_some(parameters);
            };
            self.0 = rest;
            self.skip_spaces();
            let value = if self.0.starts_with('"') { self.quoted()? } else { self.token()?.to_owned() };
            if parameters.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
                return None;
            }
            parameters.push((name, value));
        }
    }

    fn quoted(&mut self) -> Option<String> {
        let mut characters = self.0.strip_prefix('"')?.char_indices();
        let mut value = String::new();
        loop {
            match characters.next()? {
                (at, '"') => {
                    self.0 = &self.0[at + 2..];
                    return Some(value);
                }
                (_, '\\') => value.push(characters.next()?.1),
                (_, character) if character.is_control() && character != '\t' => return None,
                (_, character) => value.push(character),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) }
    }

    fn of(headers: &[&str]) -> Result<Option<Challenge>, Failure> {
        choose(headers.iter().map(|header| header.as_bytes()))
    }

    #[test]
    fn what_registries_send_is_understood() {
        for (header, challenge) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull""#,
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (r#"bearer  realm = "https://a" , service=b"#, bearer("https://a", Some("b"))),
            (r#"Bearer realm="https://a/\"b\\",error="x, y=z""#, bearer("https://a/\"b\\", None)),
            (r#"Basic realm="Registry""#, Challenge::Basic),
            ("BASIC", Challenge::Basic),
            (r#"Basic realm="x", Bearer realm="https://a",service="s""#, bearer("https://a", Some("s"))),
            (r#"Negotiate, Basic realm="x""#, Challenge::Basic),
            (r#", Digest a=b,c="d", Basic"#, Challenge::Basic),
        ] {
            assert_eq!(of(&[header]).unwrap(), Some(challenge), "{header}");
        }
        assert_eq!(of(&["Basic", r#"Bearer realm="r""#]).unwrap(), Some(bearer("r", None)));
        assert_eq!(of(&["Negotiate"]).unwrap(), None);
        assert_eq!(of(&[]).unwrap(), None);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for header in [
            "Bearer",
            r#"Bearer service="x""#,
            r#"Bearer realm="""#,
            r#"Bearer realm="https://a"#,
            r#"Bearer realm="https://a\"#,
            r#"Bearer realm="a" service="b""#,
            r#"Bearer realm="a",realm="b""#,
            "Bearer realm=https://a",
            "Bearer realm=\"a\u{7}\"",
            r#"Bearer="a""#,
            r#""Bearer""#,
            "Bearer realm",
            "=",
            "Basic dXNlcg==",
        ] {
            assert!(of(&[header]).is_err(), "{header}");
        }
        assert!(choose([b"Basic realm=\"\xff\"".as_slice()].into_iter()).is_err());
        let long = format!("Basic realm=\"{}\"", "x".repeat(CHALLENGE_MAX));
        assert!(of(&[&long]).is_err());
    }
}
