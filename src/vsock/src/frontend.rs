//! What the VMM says over the vhost-user socket: where guest memory and the rings are.
//!
//! ```text
//!   SET_MEM_TABLE, SET_VRING_NUM/ADDR/BASE/CALL   configure
//!   SET_VRING_KICK, SET_VRING_ENABLE              start a ring
//!   GET_VRING_BASE                                stops it and says where it stood
//! ```
//!
//! A ring that starts where it was stopped was only paused, along with its guest. One that starts elsewhere belongs to a
//! driver that has started anew.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::ring::Ring;

/// Part of guest memory, as the VMM addresses it.
#[derive(Debug)]
struct Mapping {
    frontend: u64,
    guest: u64,
    size: u64,
}

/// What a device is, as far as the VMM asks.
#[derive(Clone, Debug)]
pub struct Description {
    /// How many rings it has. Ring N is the device's queue N.
    pub rings: u16,
    /// Its configuration space, which the VMM only asks for if `protocol` says so.
    pub config: Vec<u8>,
    /// What it offers beyond the first version of the vhost-user protocol.
    pub protocol: VhostUserProtocolFeatures,
}

/// The machine, as far as the VMM has described it.
#[derive(Debug)]
pub struct Frontend {
    description: Description,
    epoll: Arc<Epoll>,
    /// Guest memory, once the VMM has said where it is.
    pub memory: Option<GuestMemoryMmap>,
    mappings: Vec<Mapping>,
    /// As many as the description says, from the beginning.
    pub rings: Vec<Ring>,
    features: u64,
    restarted: bool,
}

fn offered() -> u64 {
    1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not supported by this device"))
}

impl Frontend {
    /// The kick of ring N is event N of `epoll`.
    ///
    /// # Errors
    /// When the rings cannot be made.
    pub fn new(
        description: Description,
        epoll: Arc<Epoll>,
    ) -> std::result::Result<Self, virtio_queue::Error> {
        let rings = (0..description.rings).map(|_| Ring::new()).collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            description,
            epoll,
            memory: None,
            mappings: Vec::new(),
            rings,
            features: 0,
            restarted: false,
        })
    }

    /// Whether the guest's driver has started anew since the last call.
    pub fn take_restarted(&mut self) -> bool {
        std::mem::take(&mut self.restarted)
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        usize::try_from(index).ok().and_then(|index| self.rings.get_mut(index)).ok_or(Error::InvalidParam)
    }

    fn guest_address(&self, frontend: u64) -> Result<GuestAddress> {
        self.mappings
            .iter()
            .find_map(|mapping| {
                let offset = frontend.checked_sub(mapping.frontend).filter(|at| *at < mapping.size)?;
                mapping.guest.checked_add(offset).map(GuestAddress)
            })
            .ok_or(Error::InvalidParam)
    }

    /// Replaces the kick descriptor. The VMM has the same one, so closing ours does not end the watch.
    fn set_kick(&mut self, index: u32, kick: Option<File>) -> Result<()> {
        let epoll = Arc::clone(&self.epoll);
        let ring = self.ring(index)?;
        if let Some(old) = ring.kick.take() {
            epoll.delete(&old).map_err(into_error)?;
        }
        if let Some(new) = kick {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(index));
            epoll.add(&new, event).map_err(into_error)?;
            ring.kick = Some(new);
        }
        Ok(())
    }
}

fn into_error(errno: nix::Error) -> Error {
    Error::ReqHandlerError(errno.into())
}

impl VhostUserBackendReqHandlerMut for Frontend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        for ring in &mut self.rings {
            ring.enabled = false;
            ring.stop();
        }
        self.restarted = true;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !offered() != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        // Without protocol features there is no message that enables rings, so they are.
        let enabled = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for ring in &mut self.rings {
            ring.queue.set_event_idx(event_idx);
            ring.enabled |= enabled;
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.description.protocol)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.description.rings))
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let config = &self.description.config;
        let range = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
        range
            .and_then(|(start, len)| config.get(start..start.checked_add(len)?))
            .map(<[u8]>::to_vec)
            .ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        unsupported()
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut mapped = Vec::new();
        let mut mappings = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            let memory =
                GuestRegionMmap::new(region.mmap_region(file)?, GuestAddress(region.guest_phys_addr));
            mapped.push(memory.ok_or(Error::InvalidParam)?);
            mappings.push(Mapping {
                frontend: region.user_addr,
                guest: region.guest_phys_addr,
                size: region.memory_size,
            });
        }
        let memory = GuestMemoryMmap::from_regions(mapped);
        self.memory = Some(memory.map_err(|error| Error::ReqHandlerError(io::Error::other(error)))?);
        self.mappings = mappings;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.queue.try_set_size(size).map_err(|_| Error::InvalidParam)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let descriptor = self.guest_address(descriptor)?;
        let used = self.guest_address(used)?;
        let available = self.guest_address(available)?;
        let memory = self.memory.take().ok_or(Error::InvalidParam)?;
        let result = self.ring(index).and_then(|ring| {
            let queue = &mut ring.queue;
            queue
                .try_set_desc_table_address(descriptor)
                .and_then(|()| queue.try_set_avail_ring_address(available))
                .and_then(|()| queue.try_set_used_ring_address(used))
                .and_then(|()| queue.used_idx(&memory, std::sync::atomic::Ordering::Acquire))
                // The protocol carries the position in the available ring alone.
                .map(|used| queue.set_next_used(used.0))
                .map_err(|_| Error::InvalidParam)
        });
        self.memory = Some(memory);
        result
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        let ring = self.ring(index)?;
        ring.queue.set_next_avail(base);
        let anew = ring.stopped_at.is_some_and(|stopped| stopped != base);
        self.restarted |= anew;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.set_kick(index, None)?;
        let ring = self.ring(index)?;
        ring.stop();
        ring.call = None;
        Ok(VhostUserVringState::new(index, u32::from(ring.queue.next_avail())))
    }

    fn set_vring_kick(&mut self, index: u8, kick: Option<File>) -> Result<()> {
        // A ring without a kick would have to be polled.
        let kick = kick.ok_or(Error::InvalidParam)?;
        self.set_kick(u32::from(index), Some(kick))?;
        self.ring(u32::from(index))?.start();
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, call: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.call = call;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _err: Option<File>) -> Result<()> {
        self.ring(u32::from(index)).map(|_| ())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(Error::InactiveFeature(VhostUserVirtioFeatures::PROTOCOL_FEATURES));
        }
        self.ring(index)?.enabled = enable;
        Ok(())
    }

    // ---- what was not offered ----

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unsupported()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        unsupported()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        unsupported()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        unsupported()
    }
}
