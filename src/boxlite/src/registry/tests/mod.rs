//! The client against servers that behave, fail, lie and stall.

mod auth;
mod blobs;
mod documents;
mod logins;
mod server;

use std::time::Duration;

use super::proxy::Proxies;
use super::retry::Timeouts;
use super::{Credentials, ImageRegistry, Registries, RegistryTransport, Repository};

use server::Server;

/// Short enough for tests that run into them, long enough for a busy machine.
fn timeouts() -> Timeouts {
    Timeouts {
        first_delay: Duration::from_millis(1),
        longest_delay: Duration::from_millis(2),
        ..Timeouts::default()
    }
}

/// A registry over plain HTTP.
fn plain(host: &str) -> ImageRegistry {
    let mut registry = ImageRegistry::new(host);
    registry.transport = RegistryTransport::Http;
    registry
}

fn with(registries: Vec<ImageRegistry>, credentials: Credentials, timeouts: Timeouts) -> Registries {
    Registries::with(registries, Proxies::default(), credentials, timeouts).unwrap()
}

fn registries(registries: Vec<ImageRegistry>) -> Registries {
    with(registries, Credentials::default(), timeouts())
}

/// The repository `a/b` of a server.
fn repository(server: &Server) -> Repository {
    registries(vec![plain(&server.host())]).repository(&server.host(), "a/b").unwrap()
}

/// An error with its causes.
fn report(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        out = format!("{out}: {cause}");
        source = cause.source();
    }
    out
}
