package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/internal/golden"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
	"github.com/outrigger-mesh/outrigger/internal/why"
)

const whyShop = "../../internal/why/testdata/shop/in.yaml"

// runStatus runs the command line and returns what it printed and its exit status.
func runStatus(t *testing.T, stdin string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	out, _, err := runCommand(t, stdin, args...)
	var told bytes.Buffer
	status = report(err, &told)
	return out, told.String(), status
}

func TestWhyStatus(t *testing.T) {
	enforced := []string{"-f", whyShop, "-n", "shop", "--set", "trafficPolicy=enforced"}
	folder := t.TempDir()
	text, err := os.ReadFile(whyShop)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"a/shop.yaml": string(text), "notes.txt": "{", "b.yml": "# nothing\n"} {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cases := map[string]struct {
		reason string
		args   []string
		stdin  string
		status int
		says   string // on standard output, or error where the status is 2
	}{
		"allowed":       {reason: "0 is allowed", args: append(enforced, "call", "deploy/buyer", "http://store/books"), status: 0, says: "Allowed: shop/buyer may GET /books at shop/store:80.\n"},
		"denied":        {reason: "1 is denied", args: append(enforced, "call", "shop/db-0", "delete", "http://store/books"), status: 1, says: "Denied: shop/db may not DELETE /books at shop/store:80.\n"},
		"partly":        {reason: "not every call gets through", args: append(enforced, "call", "deploy/buyer", "POST", "http://store/orders", "-H", "x-customer: 7"), status: 1, says: "Partly denied:"},
		"unknown":       {reason: "2 is neither", args: append(enforced, "call", "deploy/nobody", "http://store"), status: 2, says: "outrigger: there is no Deployment shop/nobody\n"},
		"arguments":     {reason: "a mistake is no denial", args: []string{"call", "deploy/buyer"}, status: 2, says: "accepts between 2 and 3 arg(s)"},
		"flag":          {reason: "a mistake is no denial", args: []string{"call", "a/b", "c", "--no-such-flag"}, status: 2, says: "no-such-flag"},
		"output":        {reason: "the words are told", args: append(enforced, "call", "deploy/buyer", "http://store", "-o", "yaml"), status: 2, says: "text and json are allowed"},
		"file":          {reason: "the file is named", args: []string{"call", "a/b", "c", "-f", "testdata/none.yaml"}, status: 2, says: "testdata/none.yaml"},
		"field":         {reason: "a misspelt field would quietly allow less", args: []string{"call", "a/b", "c", "-f", "-"}, stdin: "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {name: x}\nspec: {source: []}\n", status: 2, says: `unknown field "spec.source"`},
		"version":       {reason: "nobody knows what it says", args: []string{"call", "a/b", "c", "-f", "-"}, stdin: "apiVersion: access.smi-spec.io/v1\nkind: TrafficTarget\nmetadata: {name: x}\n", status: 2, says: `no version "v1"`},
		"setting":       {reason: "the values are the chart's", args: []string{"call", "a/b", "c", "-f", whyShop, "--set", "egress=maybe"}, status: 2, says: "allow and deny are allowed"},
		"egress":        {reason: "so it is with these values", args: append(enforced, "--set", "egress=deny", "call", "deploy/buyer", "https://example.com"), status: 1, says: "outside the mesh"},
		"folder":        {reason: "what is YAML in it and below", args: []string{"call", "deploy/buyer", "http://store/books", "-n", "shop", "-f", folder}, status: 0, says: "Allowed"},
		"stdin":         {reason: "as with inject", args: []string{"call", "deploy/buyer", "http://store/books", "-n", "shop", "-f", "-"}, stdin: string(text), status: 0, says: "Allowed"},
		"pod with":      {reason: "0 is a pod with a proxy", args: []string{"pod", "shop/buyer-0", "-f", whyShop}, status: 0, says: "Pod shop/buyer-0 has a proxy.\n"},
		"pod without":   {reason: "1 is one without", args: []string{"pod", "host", "-n", "shop", "-f", whyShop}, status: 1, says: "host-network"},
		"pod not there": {reason: "2 is neither", args: []string{"pod", "shop/nobody", "-f", whyShop}, status: 2, says: "there is no pod shop/nobody"},
		"no cluster":    {reason: "a cluster that does not answer denies nothing", args: []string{"pod", "a/b", "--kubeconfig", "testdata/none"}, status: 2, says: "testdata/none"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			out, told, status := runStatus(t, tc.stdin, append([]string{"why"}, order(tc.args)...)...)
			said := out
			if tc.status == statusUnanswered {
				said = told
			} else if told != "" {
				t.Errorf("%s: an answer comes with the error %q", tc.reason, told)
			}
			if status != tc.status || !strings.Contains(said, tc.says) {
				t.Errorf("%s: status %d, %q and %q; want %d and %q", tc.reason, status, out, told, tc.status, tc.says)
			}
		})
	}
}

// order puts the command before the flags that the cases share.
func order(args []string) []string {
	i := max(slices.Index(args, "call"), slices.Index(args, "pod"))
	return slices.Concat(args[i:i+1], args[:i], args[i+1:])
}

func TestWhyJSON(t *testing.T) {
	out, _, status := runStatus(t, "", "why", "call", "deploy/buyer", "POST", "http://store/orders", "-H", "x-customer: 7", "-n", "shop", "-f", whyShop, "--set", "trafficPolicy=enforced", "-o", "json")
	golden.Compare(t, "testdata/why/partly.golden.json", []byte(out))
	var a why.CallAnswer
	if err := json.Unmarshal([]byte(out), &a); err != nil || a.Verdict != why.Partly || status != statusDenied {
		t.Errorf("read back: %+v, %v, status %d", a, err, status)
	}
}

func TestReadArguments(t *testing.T) {
	got, err := readArguments([]string{
		"--mesh=outrigger", "--traffic-policy", "enforced", "-egress=deny", "--service-cidrs=10.96.0.0/12,fd00::/108",
		"--exclude-outbound-ports=9000,9001", "--osm-mesh=", "--log-level=info",
	}).values()
	if err != nil {
		t.Fatal(err)
	}
	opts, err := got.ingest("outrigger-system")
	if err != nil || opts.AllowEgress || opts.Mode.String() != "enforced" || opts.OSMMeshName != "" || opts.TrustDomain != "cluster.local" || len(opts.ServiceCIDRs) != 2 {
		t.Errorf("read %+v, %v", opts, err)
	}
	if diff := cmp.Diff([]uint16{9000, 9001}, got.redirect().ExcludeOutboundPorts); diff != "" {
		t.Errorf("excluded ports (-want +got):\n%s", diff)
	}
	if _, err := (arguments{"service-cidrs": "all"}).values(); err == nil {
		t.Error("a range that is none is taken")
	}
}

// TestDenialsTellWhatWorks runs what the bodies of denials tell people to run, with
// what Envoy would fill in, through a real shell.
func TestDenialsTellWhatWorks(t *testing.T) {
	text, err := os.ReadFile("../../internal/xds/testdata/bookstore.golden.yaml")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`Run: outrigger (why call .*)`).FindAllStringSubmatch(string(text), -1)
	seen := map[string]bool{}
	for _, found := range lines {
		line := strings.NewReplacer(
			"%ENVIRONMENT(POD_NAMESPACE)%", "shop", "%ENVIRONMENT(POD_NAME)%", "buyer-0", "%DOWNSTREAM_PEER_URI_SAN%", "spiffe://cluster.local/ns/shop/sa/buyer",
			"%REQ(:METHOD)%", "PUT", "%REQ(:AUTHORITY)%", "store:80", "%PATH(NQ)%", "/a;b&c(d)$e*",
		).Replace(found[1])
		if seen[line] {
			continue
		}
		seen[line] = true
		args, err := exec.CommandContext(t.Context(), "sh", "-c", `printf '%s\n' `+line).Output()
		if err != nil {
			t.Fatalf("the shell does not take %s: %v", line, err)
		}
		words := strings.Split(strings.TrimSuffix(string(args), "\n"), "\n")
		out, told, status := runStatus(t, "", append(words, "-f", whyShop, "--set", "trafficPolicy=enforced")...)
		if want := "Denied: shop/buyer may not PUT /a;b&c(d)$e* at shop/store:80.\n"; status != statusDenied || !strings.HasPrefix(out, want) {
			t.Errorf("%s: status %d, %s%s", line, status, out, told)
		}
	}
	if len(seen) != 2 {
		t.Errorf("%d kinds of denials tell what to run; the proxies of both ends should: %v", len(seen), seen)
	}
}

// TestWhyKnowsTheTrustDomainsOfNow has callers named as denials name them while the
// mesh changes its trust domain, and after.
func TestWhyKnowsTheTrustDomainsOfNow(t *testing.T) {
	opts := ingest.Options{TrustDomain: "cluster.local"}
	acceptTrustDomains(&opts, rotation.State{
		Signing: "next", Fading: []string{"older.mesh"},
		Trusted: []rotation.Trusted{
			{Authority: rotation.Authority{Name: "last", TrustDomain: "cluster.local"}},
			{Authority: rotation.Authority{Name: "next", TrustDomain: "mesh.new"}},
			{Authority: rotation.Authority{Name: "twin", TrustDomain: "mesh.new"}},
		},
	})
	snap, problems := ingest.Build(ingest.Objects{}, opts)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for domain, known := range map[string]bool{"mesh.new": true, "cluster.local": true, "older.mesh": true, "mesh.evil": false} {
		_, in, err := snap.Settings().ParseURI("spiffe://" + domain + "/ns/shop/sa/buyer")
		if (err == nil) != known || known && in != domain {
			t.Errorf("a caller of %s is known in %q, %v", domain, in, err)
		}
	}
	if opts.TrustDomain != "mesh.new" {
		t.Errorf("%s signs", opts.TrustDomain)
	}
	acceptTrustDomains(&opts, rotation.State{})
	if opts.TrustDomain != "mesh.new" {
		t.Error("a state that names nobody changed what is accepted")
	}
}
