//! A TAP interface of our own, gone when we are.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{apt, host};

/// A TAP interface with an address; removed when dropped.
pub struct Tap {
    /// `husk0`
    pub name: String,
    /// Its number makes its network: 172.31.NUMBER.0/30, .1 being the host and .2 the guest.
    number: u8,
}

impl Tap {
    /// Makes one under the first free name. Wants root.
    pub fn create() -> Result<Self> {
        apt::need(&[("ip", "iproute2")])?;
        let taken = |n: &u8| Path::new("/sys/class/net").join(format!("husk{n}")).exists();
        let number = (0..=99).find(|n| !taken(n)).context("husk0 to husk99 are all taken")?;
        let tap = Self { name: format!("husk{number}"), number };
        let ip = |args: &[&str]| {
            host::output(host::command("ip").args(args))
                .with_context(|| format!("setting up the TAP interface {}", tap.name))
        };
        ip(&["tuntap", "add", "dev", &tap.name, "mode", "tap"])?;
        ip(&["address", "add", &format!("{}/30", tap.host()), "dev", &tap.name])?;
        ip(&["link", "set", &tap.name, "up"])?;
        Ok(tap)
    }

    /// The host's address.
    pub fn host(&self) -> String {
        format!("172.31.{}.1", self.number)
    }

    /// The guest's address.
    pub fn guest(&self) -> String {
        format!("172.31.{}.2", self.number)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let mut ip = host::command("ip");
        if let Err(error) = host::output(ip.args(["link", "delete", &self.name])) {
            host::say(format!("the TAP interface {} is left behind: {error:#}", self.name));
        }
    }
}
