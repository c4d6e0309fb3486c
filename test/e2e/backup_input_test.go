package e2e_test

import (
	"encoding/base64"
	"os"
	"strings"
	"testing"
)

// TestABackupHoldsNoSecret: what was sent with jobs stays out of the file, and a job
// that needs it after a restore is rejected instead of running without it.
func TestABackupHoldsNoSecret(t *testing.T) {
	t.Parallel()
	c := one(t)
	const secret, stdin, upload = "hidden-secret-value", "hidden-stdin-value", "echo hidden-upload-value"
	for name, text := range map[string]string{"secret": secret, "stdin": stdin, "local.sh": upload, "policy.yaml": "uploads: true\n"} {
		if err := os.WriteFile(c.Path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	later := []string{"run", "-d", "--label", "zone=later"}
	queued := map[string]string{ // id to state after the restore
		c.Must(append(later, "--secret", "k=@"+c.Path("secret"), "ok.sh")...): "REJECTED",
		c.Must(append(later, "--stdin", c.Path("stdin"), "cat.sh")...):        "REJECTED",
		c.Must(append(later, "--upload", c.Path("local.sh"))...):              "REJECTED",
		c.Must(append(later, "ok.sh")...):                                     "SUCCEEDED",
	}
	running := c.Must("run", "-d", "--secret", "k=@"+c.Path("secret"), "--retries", "1", "sleep.sh")
	c.Eventually("the job runs", func() bool { return status(t, c, running).State == "RUNNING" })

	file := c.Path("backup")
	want(t, c.Run("scheduler", "backup", file), 0, "", "without the standard input, secrets and uploads")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{secret, stdin, upload} {
		if strings.Contains(string(data), text) || strings.Contains(string(data), base64.StdEncoding.EncodeToString([]byte(text))) {
			t.Errorf("the backup holds %q", text)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}

	swap(c, "newest", file)
	c.Eventually("the running job is back", func() bool { r := status(t, c, running); return r.Reachable && r.State == "RUNNING" })
	c.Worker("w2", c.Scripts(c.Path("w2", "scripts"), scripts()), "--label", "zone=later", "--policy", c.Path("policy.yaml"))
	for id, state := range queued {
		c.Run("wait", id)
		if r := status(t, c, id); r.State != state || state == "REJECTED" && r.Reason != "INPUT_GONE" {
			t.Errorf("%+v, want %s", r, state)
		}
	}
	c.Must("stop", running)
}
