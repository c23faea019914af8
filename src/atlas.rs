//! The store as an application holds it.

use crate::Result;
use crate::config::AtlasConfig;

/// An open store. Cloning is cheap; the store is closed by [`Atlas::close`] or with the last clone.
#[derive(Clone, Debug)]
pub struct Atlas {}

impl Atlas {
    /// Opens the store that the configuration names, or makes it.
    pub async fn open(_config: AtlasConfig) -> Result<Atlas> {
        Err(crate::Error::Unavailable { what: "atlas".into(), reason: "not written yet".into() })
    }
}
