//! `husk wait`: the end of a VM that has a name.

use clap::Args;
use husk::named;

use super::Error;
use super::stdout::print;

/// Wait for the end of a VM that has a name, and print its exit status
#[derive(Args)]
pub struct Wait {
    /// The VM. Of one that was detached the status is known after its end, too
    name: String,
}

impl Wait {
    /// Prints it.
    pub fn execute(self) -> Result<u8, Error> {
        let status = named::wait(&self.name)?;
        print(&format!("{status}\n"))?;
        Ok(0)
    }
}
