//! The helper's life: from its configuration to the end of the link.
//!
//! ```text
//!   standard input ──▶ NetConfig ──▶ ports bound, resolver started ──▶ Ready
//!                  ──▶ orders ──▶ (thread) ──▶ switch ──▶ answers ──▶ standard output
//!                                              denials ─▶ (thread) ──▶ standard output
//!   the end of standard input, or of the link: the end
//! ```

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use boxlite_control::{Denial, NetConfig, NetOrder, NetReport, NetworkProtocol, VERSION, frame};

use crate::capture::Capture;
use crate::denials::Denials;
use crate::dns::Resolver;
use crate::link::Link;
use crate::orders::{self, Commander};
use crate::publish::{self, PortError};
use crate::rules::Rules;
use crate::switch::{Parts, Switch};

/// Denials that wait to be written.
const WAITING: usize = 256;

/// Why there is no network, or none any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The configuration could not be read.
    #[error("cannot read the network's configuration")]
    Read(#[source] frame::FrameError),
    /// It was written by another version.
    #[error("the configuration has version {0}, this is version {VERSION}")]
    Version(u32),
    /// A port is not to be had.
    #[error("cannot publish a port")]
    Port(#[from] PortError),
    /// The file for captured frames is not to be had.
    #[error("cannot write captured frames to {path}")]
    Capture {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something that every network needs.
    #[error("cannot set the network up")]
    Prepare(#[source] io::Error),
    /// The link has failed.
    #[error("the link to the guest has failed")]
    Link(#[source] io::Error),
}

/// Where reports go.
type Output = Arc<Mutex<Box<dyn Write + Send>>>;

/// Serves one box until its VMM goes, or until `input` ends, in which case it does not return. `on_end` is called then.
///
/// # Errors
///
/// See [`ServeError`]. One that comes before the network is there has been reported as [`NetReport::Failed`], too.
pub fn serve(
    link: OwnedFd,
    mut input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    on_end: impl Fn() + Send + 'static,
) -> Result<(), ServeError> {
    let output: Output = Arc::new(Mutex::new(Box::new(output)));
    let prepared = prepare(link, &mut input);
    let (switch, commander, denied, ports) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            say(&output, &NetReport::Failed { messages: chain(&error) });
            return Err(error);
        }
    };
    say(&output, &NetReport::Ready { ports });
    let start = || -> io::Result<()> {
        let told = Arc::clone(&output);
        let tell = move || denied.iter().for_each(|denial| say(&told, &NetReport::Denied(denial)));
        thread::Builder::new().name("denials".into()).stack_size(128 << 10).spawn(tell)?;
        let listen = move || {
            obey(&mut input, &commander, &output);
            on_end();
        };
        thread::Builder::new().name("orders".into()).stack_size(1 << 20).spawn(listen)?;
        Ok(())
    };
    start().map_err(ServeError::Prepare)?;
    switch.run().map_err(ServeError::Link)
}

type Prepared = (Switch, Commander, Receiver<Denial>, Vec<boxlite_control::PortForward>);

fn prepare(link: OwnedFd, input: &mut impl Read) -> Result<Prepared, ServeError> {
    let config: NetConfig = frame::read(input).map_err(ServeError::Read)?;
    if config.version != VERSION {
        return Err(ServeError::Version(config.version));
    }
    let NetConfig { network, link: spec, resumed, .. } = config;
    let listeners = publish::bind(&network.ports)?;
    let ports = listeners.iter().map(|listener| listener.forward).collect();
    let capture = network.capture.as_ref().map(|path| {
        Capture::create(path).map_err(|source| ServeError::Capture { path: path.clone(), source })
    });
    let rules = Arc::new(Rules::new(&network.policy, &spec));
    let (sender, denied) = sync_channel(WAITING);
    let denials = Arc::new(Denials::new(sender));
    let told = Arc::clone(&denials);
    let on_denied =
        Box::new(move |name: &str, why| told.tell(None::<NetworkProtocol>, None, Some(name), why));
    let resolver =
        Resolver::start(&network.resolvers, Arc::clone(&rules), on_denied).map_err(ServeError::Prepare)?;
    let (commander, orders) = orders::pair().map_err(ServeError::Prepare)?;
    let mut link = Link::new(link, resumed.then_some(spec.guest_mac));
    link.outbox.capture = capture.transpose()?;
    let parts = Parts { link, rules, denials, resolver, orders, listeners, rate: network.rate };
    let switch = Switch::new(parts).map_err(ServeError::Prepare)?;
    Ok((switch, commander, denied, ports))
}

/// Takes orders until there are no more.
fn obey(input: &mut impl Read, commander: &Commander, output: &Output) {
    loop {
        let order: NetOrder = match frame::read(input) {
            Ok(order) => order,
            Err(error) => {
                if !error.is_hang_up() {
                    tracing::error!(%error, "the orders cannot be understood");
                }
                return;
            }
        };
        let Some(report) = commander.give(order) else { return };
        say(output, &report);
    }
}

fn say(output: &Output, report: &NetReport) {
    let said = frame::encode(report).map_err(io::Error::other).and_then(|bytes| {
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(&bytes)?;
        output.flush()
    });
    if let Err(error) = said {
        tracing::debug!(%error, "nobody wants to know");
    }
}

fn chain(error: &dyn std::error::Error) -> Vec<String> {
    let mut messages = vec![error.to_string()];
    let mut next = error.source();
    while let Some(error) = next {
        messages.push(error.to_string());
        next = error.source();
    }
    messages
}
