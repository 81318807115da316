//! Guest memory, in JSON an object or just a size: `{"size": "1G", "shared": true}`, `"1G"`.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Size, is_false};

/// Guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryConfig {
    /// How much, a multiple of 4 KiB.
    pub size: Size,
    /// Backed by a memfd that other processes can map (vhost-user), instead of private memory.
    #[serde(skip_serializing_if = "is_false")]
    pub shared: bool,
    /// Taken from the host's pool of 2 MiB huge pages.
    #[serde(skip_serializing_if = "is_false")]
    pub hugepages: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Size::mib(512).into()
    }
}

impl From<Size> for MemoryConfig {
    /// This much private memory of small pages.
    fn from(size: Size) -> Self {
        Self { size, shared: false, hugepages: false }
    }
}

/// The object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    size: Size,
    #[serde(default)]
    shared: bool,
    #[serde(default)]
    hugepages: bool,
}

impl<'de> Deserialize<'de> for MemoryConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = MemoryConfig;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a size such as \"512M\", a number of bytes, or {\"size\": …}")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<MemoryConfig, E> {
                Ok(Size(bytes).into())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<MemoryConfig, E> {
                text.parse::<Size>().map(MemoryConfig::from).map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MemoryConfig, A::Error> {
                let object = Object::deserialize(MapAccessDeserializer::new(map))?;
                let Object { size, shared, hugepages } = object;
                Ok(MemoryConfig { size, shared, hugepages })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
