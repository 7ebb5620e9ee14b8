//! The header in front of every virtio-vsock packet (virtio 1.3, section 5.10.6).
//!
//! Everything here is copied out of guest memory once and then stays as it is: what was checked is what is used.

/// Size of the header on the wire.
pub(crate) const HEADER: usize = 44;

/// The context id of the host.
pub(crate) const HOST_CID: u64 = 2;

/// The one socket type that the device offers.
pub(crate) const STREAM: u16 = 1;

/// In a [`Op::Shutdown`]: the sender receives no more.
pub(crate) const SHUTDOWN_RECEIVE: u32 = 1;
/// In a [`Op::Shutdown`]: the sender sends no more.
pub(crate) const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub(crate) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    /// Any number without a meaning. Only ever received.
    Unknown(u16),
}

impl From<u16> for Op {
    fn from(number: u16) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }
}

impl From<Op> for u16 {
    fn from(op: Op) -> Self {
        match op {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::Data => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
            Op::Unknown(other) => other,
        }
    }
}

/// The two ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ports {
    pub(crate) host: u32,
    pub(crate) guest: u32,
}

/// What one side tells the other about its receive buffer, in every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Credit {
    /// The size of the buffer.
    pub(crate) buf_alloc: u32,
    /// How many bytes were taken out of it since the connection began, modulo 2^32.
    pub(crate) fwd_cnt: u32,
}

/// A packet's header. Nothing in one that was received is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: Op,
    pub(crate) flags: u32,
    pub(crate) credit: Credit,
}

impl Header {
    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Self {
        // The offsets below are constants inside of the array, so no field can be short.
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30).into(),
            flags: u32_at(32),
            credit: Credit { buf_alloc: u32_at(36), fwd_cnt: u32_at(40) },
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&u16::from(self.op).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.credit.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.credit.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The ports of a packet from the guest.
    pub(crate) fn ports_from_guest(&self) -> Ports {
        Ports { host: self.dst_port, guest: self.src_port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_has_the_layout_of_the_specification() {
        let header = Header {
            src_cid: 3,
            dst_cid: 0x1_0000_0002,
            src_port: 4,
            dst_port: 5,
            len: 6,
            kind: STREAM,
            op: Op::Shutdown,
            flags: SHUTDOWN_BOTH,
            credit: Credit { buf_alloc: 7, fwd_cnt: 8 },
        };
        let mut expected = Vec::new();
        expected.extend([3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
        expected.extend([4, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0]);
        expected.extend([1, 0, 4, 0, 3, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!(header.encode().as_slice(), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_a_header_that_encodes_to_them(bytes: [u8; 32], rest: [u8; 12]) {
            let mut wire = [0; HEADER];
            wire[..32].copy_from_slice(&bytes);
            wire[32..].copy_from_slice(&rest);
            prop_assert_eq!(Header::decode(&wire).encode(), wire);
        }
    }
}
