//! PID 1 of a box. All of it is in the library.

fn main() {
    boxlite_guest::init::main();
}
