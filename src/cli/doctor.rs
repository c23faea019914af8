//! `atlas doctor`.

use super::Context;
use super::args::DoctorArgs;
use super::connect::{Access, connect};
use super::output::{Reply, Verdict, visible};
use crate::ops::FindingLevel;
use crate::{Result, exit};
use serde_json::json;

pub(crate) async fn run(args: DoctorArgs, context: &Context) -> Result<Reply> {
    let operations = connect(context, Access::Existing).await?;
    let findings = operations.doctor(&args.check).await?;
    let mut plain = Vec::new();
    let mut table = Vec::new();
    for finding in &findings {
        let level = match finding.level {
            FindingLevel::Ok => "ok",
            FindingLevel::Warn => "warn",
            FindingLevel::Fail => "fail",
        };
        let message = visible(finding.message.as_bytes());
        plain.push(format!("{level}\t{}\t{message}", finding.check));
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
