//! What the switch says about itself, and what it does when it is told to.

use boxlite_control::{FlowInfo, NetOrder, NetReport, NetStats};

use crate::exchange::Exchange;
use crate::switch::Switch;
use crate::tcp::Connection;

/// The most flows that are listed.
const FLOWS: usize = 1000;

/// Carries out the orders that have come.
pub(crate) fn obey(switch: &mut Switch) {
    while let Some(order) = switch.next_order() {
        let report = match order.order {
            NetOrder::Policy(policy) => {
                switch.rules.replace(&policy);
                switch.judge_again();
                NetReport::Done
            }
            NetOrder::Stats => NetReport::Stats(Box::new(stats(switch))),
        };
        // Who has given it may have gone.
        drop(order.answer.try_send(report));
    }
}

fn stats(switch: &Switch) -> NetStats {
    let name = |flow: FlowInfo| FlowInfo { name: switch.rules.name_of(flow.peer.ip()), ..flow };
    let connections = switch.connections.iter().map(connection);
    let exchanges = switch.exchanges.iter().map(exchange);
    NetStats {
        tx_bytes: switch.counters.received_bytes,
        tx_frames: switch.counters.received_frames,
        rx_bytes: switch.link.outbox.total,
        rx_frames: switch.link.outbox.frames,
        dropped: switch.counters.dropped,
        tcp_opened: switch.counters.opened,
        tcp_failed: switch.counters.failed,
        denied: switch.denials.total(),
        restarts: 0,
        flows: connections.chain(exchanges).take(FLOWS).map(name).collect(),
    }
}

fn connection(connection: &Connection) -> FlowInfo {
    FlowInfo {
        protocol: boxlite_control::NetworkProtocol::Tcp,
        inbound: connection.inbound,
        guest_port: connection.ends.guest.port(),
        peer: connection.ends.peer,
        name: None,
        tx_bytes: connection.sent,
        rx_bytes: connection.received,
        state: connection.state().to_owned(),
    }
}

fn exchange(exchange: &Exchange) -> FlowInfo {
    FlowInfo {
        protocol: exchange.pair.protocol,
        inbound: exchange.is_inbound(),
        guest_port: exchange.pair.guest.port(),
        peer: exchange.pair.peer,
        name: None,
        tx_bytes: exchange.sent,
        rx_bytes: exchange.received,
        state: "open".to_owned(),
    }
}
