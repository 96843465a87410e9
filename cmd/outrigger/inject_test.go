package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/internal/golden"
)

func TestMain(m *testing.M) { os.Exit(golden.CheckStale(m, "testdata")) }

// runCommand runs the command line and returns what it printed.
func runCommand(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errOut)
	err = root.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

const shop = "testdata/inject/shop.yaml"

func TestInject(t *testing.T) {
	out, warned, err := runCommand(t, "", "inject", "-f", shop, "--set", "image.prefix=example.com", "--set", "image.tag=v1")
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/inject/shop.golden.yaml", []byte(out))
	if want := "warning: pod/probe-*: a pod on the host's network"; !strings.Contains(warned, want) {
		t.Errorf("warned %q, want %q", warned, want)
	}
	again, _, err := runCommand(t, out, "inject", "-f", "-", "--set", "image.prefix=example.com", "--set", "image.tag=v1")
	if diff := cmp.Diff(out, again); diff != "" || err != nil {
		t.Errorf("injecting again changed something (%v):\n%s", err, diff)
	}
}

func TestExplain(t *testing.T) {
	out, _, err := runCommand(t, "", "inject", "--explain", shop)
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/inject/explain.golden.txt", []byte(out))
}

// TestUninject wants every document back, as far as YAML is the same.
func TestUninject(t *testing.T) {
	in, err := os.ReadFile(shop)
	if err != nil {
		t.Fatal(err)
	}
	injected, _, err := runCommand(t, string(in), "inject", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := runCommand(t, injected, "uninject", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(objects(t, in), objects(t, []byte(out))); diff != "" {
		t.Errorf("uninject does not undo inject (-was +is):\n%s", diff)
	}
	untouched, _, err := runCommand(t, string(in), "uninject", "-f", "-")
	if diff := cmp.Diff(string(in), untouched); diff != "" || err != nil {
		t.Errorf("uninject changed YAML without a sidecar (%v):\n%s", err, diff)
	}
}

func objects(t *testing.T, text []byte) []map[string]any {
	t.Helper()
	docs, err := parseDocuments(text)
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]any
	for _, doc := range docs {
		list = append(list, doc.object)
	}
	return list
}

func TestInjectRefuses(t *testing.T) {
	pod := func(meta string) string {
		return "kind: Pod\nmetadata: {name: a, namespace: b, annotations: {" + meta + "}}\nspec: {containers: [{name: c}]}\n"
	}
	cases := map[string]struct {
		reason, in string
		args       []string
		says       string
	}{
		"no file":      {reason: "waiting for standard input looks like hanging", says: "name files"},
		"missing file": {reason: "a typing error", args: []string{"-f", "testdata/none.yaml"}, says: "testdata/none.yaml"},
		"not YAML":     {reason: "the document is named", args: []string{"-f", "-"}, in: "kind: Service\n---\na: [", says: "document 2"},
		"a list":       {reason: "no object is a list", args: []string{"-f", "-"}, in: "- a\n", says: "document 1"},
		"bad pod":      {reason: "the object is named", args: []string{"-f", "-"}, in: "kind: Job\nmetadata: {name: j}\nspec: {template: {spec: {containers: 1}}}", says: "job/j"},
		"two mistakes": {reason: "every mistake is told", args: []string{"-f", "-"}, in: pod("outrigger.dev/inject: maybe") + "---\n" + pod("outrigger.dev/proxy-cpu: much"), says: `"much" is not allowed`},
		"bad value":    {reason: "the value is named", args: []string{"-f", shop, "--set", "proxy.cpu=much"}, says: "proxy.cpu"},
		"bad policy":   {reason: "the value is named", args: []string{"-f", shop, "--set", "image.pullPolicy=Sometimes"}, says: "Sometimes"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			out, _, err := runCommand(t, tc.in, append([]string{"inject"}, tc.args...)...)
			if err == nil || !strings.Contains(err.Error(), tc.says) || out != "" {
				t.Errorf("%s: printed %q, error %v; want nothing, and %q", tc.reason, out, err, tc.says)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	if out, _, err := runCommand(t, "", "--version"); err != nil || out != "outrigger version dev\n" {
		t.Errorf("printed %q, %v", out, err)
	}
}
