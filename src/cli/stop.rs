//! `husk stop` and `husk kill`: ending VMs that have a name.

use std::time::Duration;

use clap::Args;
use husk::error::NameError;
use husk::named::{self, Remote};

use super::Error;
use super::values::parse_seconds;

/// What a VM that did not stop in time leaves as exit status.
const STILL_THERE: u8 = 1;

/// Turn off VMs that have a name, in good order
#[derive(Args)]
pub struct Stop {
    /// The VMs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Seconds until one that has not turned itself off is turned off
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    grace: Duration,
}

impl Stop {
    /// Turns them off, one after the other.
    pub fn execute(self) -> Result<u8, Error> {
        Ok(each(&self.names, |name, vm| {
            if vm.stop(self.grace)? {
                return Ok(true);
            }
            tell!(
                "husk: {name} has not turned itself off in {} s, and is turned off\n",
                self.grace.as_secs_f64()
            );
            vm.kill()
        }))
    }
}

/// Turn off VMs that have a name, at once
#[derive(Args)]
pub struct Kill {
    /// The VMs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Kill {
    /// Turns them off.
    pub fn execute(self) -> Result<u8, Error> {
        Ok(each(&self.names, |_, vm| vm.kill()))
    }
}

/// Ends each of them, and the others when one cannot be.
fn each(names: &[String], end: impl Fn(&str, &Remote) -> Result<bool, NameError>) -> u8 {
    let mut status = 0;
    for name in names {
        match named::find(name).and_then(|vm| end(name, &vm)) {
            Ok(true) => {}
            Ok(false) => {
                tell!("husk: {name} is still there\n");
                status = status.max(STILL_THERE);
            }
            Err(e) => {
                tell!("husk: {e}\n");
                status = super::CANNOT;
            }
        }
    }
    status
}
