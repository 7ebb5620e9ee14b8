//! The agent, with a hostile answer for who copies from `/tricks`.

fn main() {
    boxlite_guest::hostile::begin();
    boxlite_guest::init::main();
}
