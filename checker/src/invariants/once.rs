//! Write once, delete once: a cell is put at most once, deleted at most once after that, and never comes back.

use super::Look;
use crate::timeline::Witness;

const TABLE: &str = "once";
const COLUMN: &str = "value";

pub(super) fn check(look: &mut Look<'_, '_, '_>) {
    for cell in look.cells_of(TABLE, COLUMN) {
        for (at, version) in look.committed_versions(cell).iter().enumerate() {
            look.looks += 1;
            let problem = match (at, version.value) {
                (0, Some(_)) | (1, None) => continue,
                (0, None) => "it is deleted before it was put",
                (_, Some(_)) => "it is put a second time",
                (_, None) => "it is deleted a second time",
            };
            let name = look.timeline.index.cell_name(cell);
            look.broken(&[Witness::Transaction(version.txn)], &[cell], format!("{name}: {problem}"));
        }
    }
}
