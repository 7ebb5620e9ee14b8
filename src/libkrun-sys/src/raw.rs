//! The C functions of libkrun, declared as `libkrun.h` does.
//!
//! All of them return 0 or more on success and a negative errno on failure. String arguments are read during the call
//! and not kept.

use std::ffi::{c_char, c_int};

/// `disk_format` of [`krun_add_disk2`]: the bytes of the disk.
pub const KRUN_DISK_FORMAT_RAW: u32 = 0;
/// `disk_format` of [`krun_add_disk2`]: qcow2, with its chain of backing files.
pub const KRUN_DISK_FORMAT_QCOW2: u32 = 1;
/// `kernel_format` of [`krun_set_kernel`]: an ELF file that is entered at its entry address in 64-bit mode.
pub const KRUN_KERNEL_FORMAT_ELF: u32 = 1;
/// `style` of [`krun_init_log`]: no colours.
pub const KRUN_LOG_STYLE_NEVER: u32 = 2;
/// `options` of [`krun_init_log`]: the environment is not asked.
pub const KRUN_LOG_OPTION_NO_ENV: u32 = 1;

/// `features` of [`krun_add_net_unixstream`], as bits of virtio-net: the device takes frames without checksums, and the
/// guest takes frames that are as long as those of segmentation offload. The frames themselves stay plain ones.
pub const NET_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8;

/// Declares functions, and has the compiler check each declaration against the function that will be linked.
macro_rules! declare {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        unsafe extern "C" {
            $($(#[$doc])* pub fn $name($($argument: $type),*) -> $result;)*
        }

        // A difference in the number or type of arguments is a type error here.
        const _: () = {
            $(let _: unsafe extern "C" fn($($type),*) -> $result = krun::$name;)*
        };

        #[cfg(test)]
        const SAME_SYMBOL: &[(&str, usize_of::Declared, usize_of::Declared)] = &[
            $((stringify!($name), || $name as *const () as usize, || krun::$name as *const () as usize),)*
        ];
    };
}

#[cfg(test)]
mod usize_of {
    pub(super) type Declared = fn() -> usize;
}

declare! {
    /// Starts logging to a file descriptor. At most once in a process; panics otherwise.
    fn krun_init_log(target: c_int, level: u32, style: u32, options: u32) -> i32;

    /// Creates a configuration and returns its id.
    fn krun_create_ctx() -> i32;

    /// Frees a configuration that was not started.
    fn krun_free_ctx(context: u32) -> i32;

    /// Sets the number of CPUs and the memory in MiB.
    fn krun_set_vm_config(context: u32, cpus: u8, memory_mib: u32) -> i32;

    /// Boots this kernel instead of the one in libkrunfw.
    fn krun_set_kernel(
        context: u32,
        path: *const c_char,
        format: u32,
        initramfs: *const c_char,
        command_line: *const c_char
    ) -> i32;

    /// Adds a virtio-blk device behind those added before.
    fn krun_add_disk2(
        context: u32,
        id: *const c_char,
        path: *const c_char,
        format: u32,
        read_only: bool
    ) -> i32;

    /// Leaves out the vsock device that would be made by itself, which gives the guest the host's sockets.
    fn krun_disable_implicit_vsock(context: u32) -> i32;

    /// Adds a vsock device with these socket impersonation features; 0 is a plain vsock device.
    fn krun_add_vsock(context: u32, tsi_features: u32) -> i32;

    /// Connects a vsock port with a Unix socket. With `listen` the VMM listens on the socket, which must not exist, and
    /// dials the guest's port; without, the guest dials and the VMM connects to the socket.
    fn krun_add_vsock_port2(context: u32, port: u32, path: *const c_char, listen: bool) -> i32;

    /// Adds a virtio-net device with this hardware address of six bytes, which is connected with a Unix stream: one at
    /// `path`, or the descriptor `fd`, which libkrun takes over. The other is null or negative.
    fn krun_add_net_unixstream(
        context: u32,
        path: *const c_char,
        fd: c_int,
        mac: *const u8,
        features: u32,
        flags: u32
    ) -> i32;

    /// Writes the output of the console `hvc0` to a file, which is opened for writing.
    fn krun_set_console_output(context: u32, path: *const c_char) -> i32;

    /// Builds and runs the machine. Returns only when it could not be built; when the guest ends, so does the process.
    fn krun_start_enter(context: u32) -> i32;
}

#[cfg(test)]
mod tests {
    use super::SAME_SYMBOL;

    #[test]
    fn each_declaration_is_linked_to_the_function_of_the_libkrun_crate() {
        for (name, declared, linked) in SAME_SYMBOL {
            assert_eq!(declared(), linked(), "{name}");
        }
    }
}
