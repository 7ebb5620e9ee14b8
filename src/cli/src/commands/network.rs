//! `boxlite network` and `boxlite port`

use std::process::ExitCode;

use boxlite::{BoxliteRuntime, NetworkFlow, NetworkInfo, NetworkPolicy, PortInfo};
use serde_json::{Value, json};

use super::find;
use crate::args::{Format, NetworkCommand, NetworkInspectArgs, NetworkUpdateArgs, PortArgs};
use crate::exit::Failure;
use crate::output;

pub(crate) async fn run(runtime: &BoxliteRuntime, command: NetworkCommand) -> Result<ExitCode, Failure> {
    match command {
        NetworkCommand::Update(args) => update(runtime, args).await,
        NetworkCommand::Inspect(args) => inspect(runtime, &args).await,
    }
}

async fn update(runtime: &BoxliteRuntime, args: NetworkUpdateArgs) -> Result<ExitCode, Failure> {
    let Some(spec) = args.network.spec()? else {
        return Err(Failure::Told("nothing is to change: give --network, --allow-net or --deny-net".into()));
    };
    let found = find(runtime, &args.target).await?;
    found.network().update_outbound(spec).await?;
    output::line(&args.target)?;
    Ok(ExitCode::SUCCESS)
}

async fn inspect(runtime: &BoxliteRuntime, args: &NetworkInspectArgs) -> Result<ExitCode, Failure> {
    let found = find(runtime, &args.target).await?;
    let info = found.network().info().await?;
    if args.format.format == Format::Json {
        output::json(&as_json(&info))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!("Base:        {}", info.policy.base()))?;
    for (allow, rule) in info.policy.rules() {
        output::line(&format!("Rule:        {} {rule}", if allow { "allow" } else { "deny" }))?;
    }
    output::line(&format!("Sent:        {} in {} frames", output::bytes(info.tx_bytes), info.tx_packets))?;
    output::line(&format!("Received:    {} in {} frames", output::bytes(info.rx_bytes), info.rx_packets))?;
    output::line(&format!("Connections: {} made, {} failed", info.tcp_connections, info.tcp_errors))?;
    output::line(&format!("Denied:      {}", info.denied))?;
    if !info.flows.is_empty() {
        output::line("")?;
        let rows: Vec<_> = info.flows.iter().map(row).collect();
        output::table(&["PROTOCOL", "BOX PORT", "PEER", "NAME", "SENT", "RECEIVED", "STATE"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(flow: &NetworkFlow) -> Vec<String> {
    vec![
        flow.protocol.to_owned(),
        flow.guest_port.to_string(),
        flow.peer.to_string(),
        flow.name.clone().unwrap_or_default(),
        output::bytes(flow.tx_bytes),
        output::bytes(flow.rx_bytes),
        flow.state.clone(),
    ]
}

fn as_json(info: &NetworkInfo) -> Value {
    let flow = |flow: &NetworkFlow| {
        json!({
            "protocol": flow.protocol,
            "inbound": flow.inbound,
            "guest_port": flow.guest_port,
            "peer": flow.peer,
            "name": flow.name,
            "tx_bytes": flow.tx_bytes,
            "rx_bytes": flow.rx_bytes,
            "state": flow.state,
        })
    };
    json!({
        "policy": policy(&info.policy),
        "tx_bytes": info.tx_bytes,
        "tx_packets": info.tx_packets,
        "rx_bytes": info.rx_bytes,
        "rx_packets": info.rx_packets,
        "dropped": info.dropped,
        "tcp_connections": info.tcp_connections,
        "tcp_errors": info.tcp_errors,
        "denied": info.denied,
        "restarts": info.restarts,
        "flows": info.flows.iter().map(flow).collect::<Vec<_>>(),
    })
}

/// A policy, for programs.
pub(crate) fn policy(policy: &NetworkPolicy) -> Value {
    let rule = |(allow, rule): (bool, String)| json!({ "verdict": if allow { "allow" } else { "deny" }, "rule": rule });
    json!({ "base": policy.base(), "rules": policy.rules().map(rule).collect::<Vec<_>>() })
}

/// A port, for programs.
pub(crate) fn shown(port: &PortInfo) -> Value {
    json!({
        "host_ip": port.host.ip(),
        "host_port": port.host.port(),
        "guest_port": port.guest_port,
        "protocol": port.protocol.name(),
    })
}

pub(crate) async fn port(runtime: &BoxliteRuntime, args: PortArgs) -> Result<ExitCode, Failure> {
    let found = find(runtime, &args.target).await?;
    let mut ports = found.ports()?;
    if let Some(wanted) = &args.port {
        let (number, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
        ports.retain(|port| port.guest_port.to_string() == number && port.protocol.name() == protocol);
        if ports.is_empty() {
            return Err(Failure::Told(format!(
                "no public port `{}` of box `{}`",
                wanted.escape_debug(),
                args.target.escape_debug()
            )));
        }
    }
    if args.format.format == Format::Json {
        output::json(&Value::Array(ports.iter().map(shown).collect()))?;
        return Ok(ExitCode::SUCCESS);
    }
    for port in &ports {
        match args.port {
            Some(_) => output::line(&port.host.to_string())?,
            None => output::line(&format!("{}/{} -> {}", port.guest_port, port.protocol.name(), port.host))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}
