//! What it costs to judge a new flow by 10,000 rules, beside a connection over loopback in the same run.

#![allow(clippy::print_stdout, reason = "the numbers are what this program is for")]

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use boxlite_control::{LinkSpec, NetworkPolicy, NetworkPreset, NetworkProtocol, NetworkRule, NetworkVerdict};
use boxlite_net::policy::{Bindings, Flow, Policy, Stated};

const RULES: u32 = 10_000;
const FLOWS: u32 = 100_000;
const CONNECTIONS: u32 = 2_000;

/// A third of the rules each are about names, about what is below names, and about blocks that lie in each other.
fn rule(number: u32) -> Result<NetworkRule, Box<dyn Error>> {
    let block = Ipv4Addr::from(0x1400_0000 + (number << 8));
    let text = match number % 6 {
        0 | 1 => format!("host{number}.example.com:443"),
        2 | 3 => format!("*.zone{number}.example.net:80,443,8000-8010/tcp"),
        4 => format!("{block}/24:443"),
        _ => {
            format!("{}/{}", Ipv4Addr::from(0x1400_0000 & (u32::MAX << (24 - number % 16))), 8 + number % 16)
        }
    };
    let verdict = if number.is_multiple_of(7) { NetworkVerdict::Deny } else { NetworkVerdict::Allow };
    Ok(NetworkRule::parse(verdict, &text)?)
}

fn each(count: u32, mut what: impl FnMut(u32)) -> f64 {
    let start = Instant::now();
    (0..count).for_each(&mut what);
    start.elapsed().as_secs_f64() * 1e6 / f64::from(count)
}

fn main() -> Result<(), Box<dyn Error>> {
    let rules = (0..RULES).map(rule).collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    let policy = Policy::new(&NetworkPolicy { preset: NetworkPreset::Public, rules }, &LinkSpec::default());
    println!("{RULES} rules made ready in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);

    let now = Instant::now();
    let mut bindings = Bindings::default();
    let address = |number: u32| IpAddr::V4(Ipv4Addr::from(0x1400_0000 + number % 30_000));
    let day = Duration::from_secs(86_400);
    let bind = each(60_000, |number| {
        bindings.bind(&format!("a.b.zone{}.example.net", number % RULES), address(number), day, now);
    });
    for number in 0..32 {
        bindings.bind(&format!("{}zone{number}.example.net", "a.".repeat(100)), address(0), day, now);
    }
    let flow = |number| Flow { protocol: NetworkProtocol::Tcp, to: SocketAddr::new(address(number), 443) };
    let new_flow = each(FLOWS, |number| {
        std::hint::black_box(policy.judge(&flow(number), &bindings, now));
    });
    let worst_flow = each(FLOWS, |_| {
        std::hint::black_box(policy.judge(&flow(0), &bindings, now));
    });
    let stated = each(FLOWS, |number| {
        let name = Some(format!("a.b.zone{}.example.net", number % RULES));
        let stated = Stated::Tls { name, encrypted: false };
        std::hint::black_box(policy.judge_stated(&flow(number), &stated, &bindings, now)).ok();
    });

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to = listener.local_addr()?;
    let mut failed = None;
    let connect = each(CONNECTIONS, |_| {
        if let Err(error) = TcpStream::connect(to).and_then(|stream| listener.accept().map(|_| stream)) {
            failed = Some(error);
        }
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    println!("connection over loopback    {connect:8.2} µs");
    for (what, cost) in [
        ("new flow", new_flow),
        ("new flow, 32 long names", worst_flow),
        ("what a connection states", stated),
        ("binding", bind),
    ] {
        println!("{what:<27} {cost:8.2} µs = {:.3} connections", cost / connect);
    }
    Ok(())
}
