//! Names that are answered without asking anybody: those of the link, and those that never leave a machine (RFC 6761).

use std::net::IpAddr;

use boxlite_control::LinkSpec;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// How long such an answer lives, in seconds.
const LIVES: u32 = 60;
/// Everything below is ours.
const OURS: &str = "boxlite.internal";
/// Names that no server of the host's has to know of.
const NOWHERE: [&str; 4] = ["invalid", "local", "onion", "test"];

/// What is said of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Somebody else has to say it.
    Nothing,
    /// These records; maybe none of this kind.
    Records(Vec<Record>),
    /// There is no such name.
    NotThere,
}

impl Said {
    /// As an answer has it.
    pub(super) fn code(&self) -> ResponseCode {
        match self {
            Self::NotThere => ResponseCode::NXDomain,
            Self::Nothing | Self::Records(_) => ResponseCode::NoError,
        }
    }
}

/// What is said of this name, in lower case and without a dot at the end; `written` is how the question has it.
pub(super) fn answer(name: &str, written: &Name, kind: RecordType, link: &LinkSpec) -> Said {
    let of = |v4: IpAddr, v6: IpAddr| {
        let data = [v4, v6].into_iter().map(data);
        let fitting = data.filter(|data| data.record_type() == kind);
        Said::Records(fitting.map(|data| Record::from_rdata(written.clone(), LIVES, data)).collect())
    };
    match name {
        LinkSpec::HOST_NAME => return of(link.host4.into(), link.host6.into()),
        LinkSpec::GATEWAY_NAME => return of(link.gateway4.into(), link.gateway6.into()),
        OURS => return Said::Records(Vec::new()),
        _ => {}
    }
    let below = |parent: &str| name == parent || name.ends_with(&format!(".{parent}"));
    if below("localhost") {
        return of(IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]));
    }
    if below(OURS) || NOWHERE.into_iter().any(below) {
        return Said::NotThere;
    }
    match written.parse_arpa_name() {
        Ok(block) if below("arpa") => reverse(block.addr(), written, kind, link),
        _ => Said::Nothing,
    }
}

/// The name of an address. Those of private ones are nobody's business outside.
fn reverse(address: IpAddr, written: &Name, kind: RecordType, link: &LinkSpec) -> Said {
    let ours = match address {
        _ if link.is_host(address) => Some(LinkSpec::HOST_NAME),
        _ if link.is_gateway(address) => Some(LinkSpec::GATEWAY_NAME),
        _ => None,
    };
    if let Some(Ok(name)) = ours.map(|name| Name::from_ascii(format!("{name}."))) {
        let record = Record::from_rdata(written.clone(), LIVES, RData::PTR(PTR(name)));
        return Said::Records(if kind == RecordType::PTR { vec![record] } else { Vec::new() });
    }
    if crate::policy::is_public(address, link) { Said::Nothing } else { Said::NotThere }
}

fn data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(address.into()),
        IpAddr::V6(address) => RData::AAAA(address.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &str, kind: RecordType) -> Said {
        answer(name, &Name::from_ascii(format!("{name}.")).unwrap(), kind, &LinkSpec::default())
    }

    fn addresses(said: Said) -> Vec<IpAddr> {
        let Said::Records(records) = said else { panic!("{said:?}") };
        records.iter().filter_map(|record| record.data.ip_addr()).collect()
    }

    #[test]
    fn the_link_is_known_by_name_and_by_address() {
        let link = LinkSpec::default();
        assert_eq!(addresses(said("host.boxlite.internal", RecordType::A)), [IpAddr::V4(link.host4)]);
        assert_eq!(
            addresses(said("gateway.boxlite.internal", RecordType::AAAA)),
            [IpAddr::V6(link.gateway6)]
        );
        assert!(addresses(said("host.boxlite.internal", RecordType::TXT)).is_empty());
        assert_eq!(said("other.boxlite.internal", RecordType::A), Said::NotThere);
        let Said::Records(records) = said("254.127.168.192.in-addr.arpa", RecordType::PTR) else { panic!() };
        assert_eq!(records[0].data.to_string(), "host.boxlite.internal.");
    }

    #[test]
    fn what_never_leaves_a_machine_is_answered_here() {
        assert_eq!(addresses(said("localhost", RecordType::A)), [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(addresses(said("x.localhost", RecordType::AAAA)), ["::1".parse::<IpAddr>().unwrap()]);
        for name in
            ["printer.local", "x.onion", "a.invalid", "1.0.0.10.in-addr.arpa", "1.1.168.192.in-addr.arpa"]
        {
            assert_eq!(said(name, RecordType::PTR), Said::NotThere, "{name}");
        }
        for name in ["example.com", "1.1.1.1.in-addr.arpa", "notlocalhost", "arpa", "mylocal"] {
            assert_eq!(said(name, RecordType::PTR), Said::Nothing, "{name}");
        }
    }
}
