//! What cargo cannot say by itself: the program inside guests, and where husk's code stands.

mod agent;
mod layout;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build");
    layout::arrange();
    agent::compile()
}
