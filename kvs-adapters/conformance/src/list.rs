//! The list of all cases.

/// Makes a test of every case, in a module for each subject: `scans::bound_is_exclusive` and so on.
///
/// Takes an expression for a [`Factory`](crate::Factory), which is evaluated once for each test. Several stores are
/// tested in one file by putting each call into a module of its own.
#[macro_export]
macro_rules! conformance_tests {
    ($factory:expr) => {
        $crate::conformance_tests! {
            @tests ($factory)
            tables: [
                created_table_is_described,
                absent_table_has_no_description,
                tables_are_listed_in_order_of_names,
                create_is_idempotent,
                create_with_the_other_kind_is_refused,
                concurrent_creates_all_succeed,
                concurrent_creates_of_both_kinds_agree_on_one,
                drop_removes_data_and_metadata,
                drop_of_an_absent_table_is_fine,
                recreated_table_is_empty,
                drop_leaves_other_tables,
                truncate_keeps_the_table,
                truncated_table_takes_data_again,
                metadata_are_replaced,
                similar_names_are_different_tables,
                tables_do_not_mix,
                absent_table_is_no_such_table,
                other_kind_is_wrong_table_kind,
                size_is_told_for_both_kinds,
                empty_input_needs_no_table,
                empty_input_gives_empty_output,
            ],
            reads: [
                bound_is_exclusive,
                newest_version_below_the_bound_is_seen,
                extreme_timestamps_keep_their_order,
                answers_come_in_the_order_given,
                cell_may_be_asked_for_twice,
                sentinel_is_a_version,
                nothing_is_below_zero,
                empty_value_is_a_value,
                many_versions_of_one_cell_can_be_read,
                many_cells_can_be_read_at_once,
                versions_are_all_below_the_bound,
                versions_tell_length_and_prefix,
            ],
            names: [
                similar_cells_do_not_mix,
                similar_atomic_cells_do_not_mix,
                order_is_of_unsigned_bytes_row_first,
                ranges_of_any_bytes_are_exact,
                empty_names_are_kept_or_refused,
                large_values_are_kept_or_refused,
                long_names_are_kept_or_refused,
                names_at_the_limits_are_accepted,
                lengths_over_the_limits_are_refused,
            ],
            scans: [
                cuts_are_in_order_and_lose_nothing,
                forward_scan_is_in_order,
                reverse_scan_is_in_reverse_order,
                bound_is_exclusive,
                sentinel_is_a_version,
                row_range_includes_start_and_excludes_end,
                prefix_range_is_exact,
                exact_columns_are_selected,
                column_range_applies_to_every_row,
                selections_combine,
                page_size_changes_nothing,
                resumed_scan_starts_strictly_behind,
                resuming_needs_no_existing_cell,
                scan_in_single_steps_is_complete,
                cells_with_newer_versions_only_are_skipped,
                many_versions_give_one_item,
                thousands_of_cells_come_in_pages,
                wide_row_is_scanned_by_columns,
                empty_table_gives_nothing,
                scan_sees_what_was_written_before,
                writes_during_a_scan_disturb_nothing,
                pages_hold_what_a_scan_gives,
                page_ends_between_cells_not_within,
                failed_scan_ends_after_its_error,
                stream_borrows_nothing,
            ],
            version_scans: [
                cells_come_with_all_their_versions,
                bound_is_exclusive,
                page_size_changes_nothing,
                cell_larger_than_a_page_is_complete,
                resumed_scan_starts_strictly_behind,
                rows_are_of_the_range,
                cells_with_newer_versions_only_are_skipped,
                scan_and_listing_agree,
            ],
            writes: [
                put_writes_several_tables,
                put_versions_writes_each_at_its_own_timestamp,
                same_value_twice_is_fine,
                conflicting_value_is_refused_where_promised,
                two_values_for_one_place_conflict,
                conflicting_put_is_atomic_where_promised,
                timestamps_that_data_cannot_have_are_refused,
                put_with_one_wrong_table_writes_nothing,
                put_of_many_cells_is_complete,
                sentinels_leave_other_versions,
                sentinels_are_idempotent,
                deleted_sentinel_can_be_added_again,
                deleted_version_can_be_written_again,
                concurrent_puts_are_all_kept,
                concurrent_conflicting_puts_have_one_winner,
            ],
            deletes: [
                exactly_the_named_versions_go,
                absent_versions_are_fine,
                several_cells_in_one_call,
                oldest_version_goes_first,
                range_goes_up_to_its_limit,
                range_takes_the_sentinel_if_asked,
                empty_version_range_does_nothing,
                several_ranges_in_one_call,
                rows_go_with_all_their_versions,
                empty_row_range_does_nothing,
                deleted_rows_take_data_again,
            ],
            atomics: [
                answers_come_in_the_order_given,
                put_unless_exists_reports_what_stands,
                empty_value_is_a_value,
                check_and_set_in_every_combination,
                removed_cell_takes_a_value_again,
                aba_is_allowed,
                other_cells_are_of_no_concern,
                concurrent_put_unless_exists_has_one_winner,
                contended_counters_lose_nothing,
                reads_never_run_backwards,
                scan_keeps_order_range_and_place,
                scan_shows_what_stands,
            ],
            batches: [
                batch_writes_several_tables,
                set_replaces_what_stands,
                last_set_of_a_cell_counts,
                remove_removes_what_stands,
                same_put_twice_is_fine,
                batch_with_one_wrong_write_applies_nothing,
                two_values_for_one_place_conflict,
                readers_see_all_of_a_batch_or_nothing,
                readers_see_all_of_a_put_or_nothing,
                batches_of_many_cells_are_complete,
                guard_decides_over_the_whole_batch,
                guard_of_a_missing_table_applies_nothing,
                no_batch_is_applied_behind_a_changed_guard,
            ],
            lifecycle: [
                healthy_store_is_fully_available,
                capabilities_are_constant,
                epoch_is_shared,
                closed_store_refuses_everything,
                running_scan_fails_when_the_store_closes,
                running_scan_survives_or_fails_when_the_store_reopens,
                reopened_store_goes_on,
                data_outlive_the_store_as_promised,
                deletions_outlive_the_store_as_promised,
                relaxed_batch_is_kept_with_the_synced_one_behind_it,
                large_data_outlive_the_store_as_promised,
            ],
            model: [
                random_operations_agree_with_the_model,
            ],
        }
    };
    (@tests $factory:tt $($subject:ident: [$($case:ident,)*],)*) => {
        $($crate::conformance_tests!(@subject $factory $subject $($case)*);)*
    };
    (@subject $factory:tt $subject:ident $($case:ident)*) => {
        mod $subject {
            #[allow(unused_imports, reason = "a factory may be given by its full path")]
            use super::*;

            $(
                #[test]
                fn $case() {
                    $crate::run($factory, $crate::cases::$subject::$case);
                }
            )*
        }
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_case_is_forgotten() {
        let sources = [
            include_str!("cases/atomics.rs"),
            include_str!("cases/batches.rs"),
            include_str!("cases/deletes.rs"),
            include_str!("cases/lifecycle.rs"),
            include_str!("cases/model.rs"),
            include_str!("cases/names.rs"),
            include_str!("cases/reads.rs"),
            include_str!("cases/scans.rs"),
            include_str!("cases/tables.rs"),
            include_str!("cases/version_scans.rs"),
            include_str!("cases/writes.rs"),
        ];
        assert_eq!(sources.len(), include_str!("cases/mod.rs").matches("pub mod ").count());
        // Two subjects may have a case of the same name, so the number of its entries counts.
        let names = sources.iter().flat_map(|source| source.lines()).filter_map(|line| {
            let (name, _) = line.strip_prefix("pub async fn ")?.split_once('(')?;
            Some(name)
        });
        let names: Vec<_> = names.collect();
        for name in &names {
            let cases = names.iter().filter(|other| *other == name).count();
            let entries = include_str!("list.rs").lines().filter(|line| line.trim() == format!("{name},")).count();
            assert_eq!(entries, cases, "{name}");
        }
    }
}
