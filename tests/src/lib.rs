//! The harness of the VM tests.
