//! `atlas doctor`.

use super::Context;
use super::args::DoctorArgs;
use super::connect::{Access, connect};
use super::output::{Reply, Verdict, visible};
use crate::ops::{DoctorFinding, FindingLevel};
use crate::{Error, Result, exit};
use serde_json::json;

/// The finding about a store that is half restored or damaged; other errors are no findings.
fn why_it_stays_closed(error: Error) -> Result<DoctorFinding> {
    let message = error.to_string();
    let check = match error.code() {
        "CORRUPT" => "store",
        // Nothing else is refused in these words.
        "REFUSED" if message.contains("restore that was not finished") || message.contains("is under way") => "restore",
        _ => return Err(error),
    };
    let hint = error.hint().or_else(|| Some("restore the latest backup: `atlas backup list`".to_owned()));
    Ok(DoctorFinding { check: check.to_owned(), level: FindingLevel::Fail, message, hint })
}

pub(crate) async fn run(args: DoctorArgs, context: &Context) -> Result<Reply> {
    let findings = match connect(context, Access::Existing).await {
        Ok(operations) => operations.doctor(&args.check).await?,
        // That it can't be opened is what was to be found out.
        Err(error) => {
            let mut finding = why_it_stays_closed(error)?;
            finding.hint = finding.hint.map(|hint| context.named(hint));
            vec![finding]
        }
    };
    let mut plain = Vec::new();
    let mut table = Vec::new();
    for finding in &findings {
        let level = match finding.level {
            FindingLevel::Ok => "ok",
            FindingLevel::Warn => "warn",
            FindingLevel::Fail => "fail",
        };
        let message = visible(finding.message.as_bytes());
        let hint = finding.hint.as_ref().map_or_else(String::new, |hint| format!("\t{hint}"));
        plain.push(format!("{level}\t{}\t{message}{hint}", finding.check));
        table.push(format!("{level:4}  {}: {message}", finding.check));
        table.extend(finding.hint.iter().map(|hint| format!("      what to do: {hint}")));
    }
    let number = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (failed, warned) = (number(FindingLevel::Fail), number(FindingLevel::Warn));
    let data = json!({"findings": findings, "failed": failed, "warned": warned});
    let mut reply = Reply::new(data, plain.join("\n"), table.join("\n"));
    if failed > 0 {
        let message = format!("{failed} of {} checks failed", findings.len());
        reply.verdict = Some(Verdict { code: "DOCTOR_FAILED", message, exit_code: exit::DOCTOR });
    }
    Ok(reply)
}
