//! The address of a network interface in a guest that runs commands, which its agent sets.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IPv4 address and the length of its network's prefix: `10.0.9.1/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of it that are the network's, 1 to 32.
    pub prefix: u8,
}

/// What is no [`InterfaceAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address of an interface: ADDRESS/BITS of IPv4, as in 10.0.9.1/24")]
pub struct AddressError(String);

impl FromStr for InterfaceAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let unusable = address.is_unspecified() || address.is_multicast() || address.is_broadcast();
        match prefix.parse() {
            Ok(prefix @ 1..=32) if !unusable => Ok(Self { address, prefix }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for InterfaceAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InterfaceAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written_and_nothing_else_is_one() {
        let address: InterfaceAddress = "10.0.9.1/24".parse().unwrap();
        assert_eq!((address.address, address.prefix), (Ipv4Addr::new(10, 0, 9, 1), 24));
        assert_eq!(address.to_string(), "10.0.9.1/24");
        for text in
            ["", "10.0.9.1", "10.0.9.1/0", "10.0.9.1/33", "10.0.9/24", "::1/64", "0.0.0.0/8", "a/8"]
        {
            assert!(text.parse::<InterfaceAddress>().is_err(), "{text}");
        }
    }
}
