//! The virtio-vsock ports of a box.

/// The context id of the host, from the virtio specification (section 5.10.4).
pub const HOST_CID: u32 = 2;

/// The context id that a box's guest has. Each box has a device of its own, so all may have the same.
pub const GUEST_CID: u32 = 3;

/// Guest port on which the agent serves the portal.
pub const PORTAL: u32 = 1024;

/// Host port that the agent dials to report its boot.
pub const BOOT: u32 = 1025;

/// Host port that the agent dials for the box's volumes, where there is no virtio-fs device.
pub const SHARE: u32 = 1026;
