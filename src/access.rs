//! That guest memory is not where husk would write to it, for all who write there.

use vm_memory::GuestMemoryError;

/// There is no guest memory where husk would write: why, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AccessError(pub String);

impl From<GuestMemoryError> for AccessError {
    fn from(e: GuestMemoryError) -> Self {
        Self(e.to_string())
    }
}
