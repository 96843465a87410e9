package bootstrap_test

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
	"github.com/outrigger-mesh/outrigger/internal/golden"
)

func TestMain(m *testing.M) { os.Exit(golden.CheckStale(m, "testdata")) }

var node = bootstrap.Node{Namespace: "bookstore", Pod: "bookstore-v1-5d9c", UID: "6f1e-77", ServiceAccount: "bookstore-v1"}

var plain = bootstrap.Settings{
	Mesh:           "outrigger",
	TrustDomain:    "cluster.local",
	ControlPlane:   "outriggerd.outrigger-system.svc.cluster.local:15128",
	ControlPlaneID: "spiffe://cluster.local/ns/outrigger-system/sa/outriggerd",
}

func TestConfig(t *testing.T) {
	tests := map[string]struct {
		reason string
		change func(*bootstrap.Settings, *bootstrap.Node)
	}{
		"plain":    {"the least that an injector says", func(*bootstrap.Settings, *bootstrap.Node) {}},
		"limited":  {"a memory limit bounds heap and connections", func(s *bootstrap.Settings, _ *bootstrap.Node) { s.MemoryLimit = 256 << 20 }},
		"tiny":     {"with less memory than Envoy is thought to need, it still gets half", func(s *bootstrap.Settings, _ *bootstrap.Node) { s.MemoryLimit = 32 << 20 }},
		"by-ip":    {"an address is no SNI", func(s *bootstrap.Settings, _ *bootstrap.Node) { s.ControlPlane = "[fd00::7]:15128" }},
		"in-zone":  {"the zone is told where it is known", func(_ *bootstrap.Settings, n *bootstrap.Node) { n.Zone = "eu-1a" }},
		"one-byte": {"the smallest limit does not make nonsense", func(s *bootstrap.Settings, _ *bootstrap.Node) { s.MemoryLimit = 1 << 20 }},
	}
	envoy, err := envoybin.EnvoyBinary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, n := plain, node
			test.change(&s, &n)
			config, err := bootstrap.Config(s, n)
			if err != nil {
				t.Fatalf("%s: %v", test.reason, err)
			}
			readStrictly(t, config)
			text, err := yaml.JSONToYAML(config)
			if err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, filepath.Join("testdata", name+".golden.yaml"), text)

			// The real Envoy wants the folders and files to be there.
			n.StateDir = t.TempDir()
			validate(t, envoy, s, n)
		})
	}
}

// readStrictly fails where a field is not Envoy's, or a value breaks a rule of
// its API.
func readStrictly(t *testing.T, config []byte) {
	t.Helper()
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(config, &b); err != nil {
		t.Fatalf("Envoy's API does not know the bootstrap: %v", err)
	}
	if err := b.ValidateAll(); err != nil {
		t.Errorf("Envoy's API refuses the bootstrap: %v", err)
	}
	for _, c := range b.GetStaticResources().GetClusters() {
		var tls tlsv3.UpstreamTlsContext
		if err := c.GetTransportSocket().GetTypedConfig().UnmarshalTo(&tls); err != nil {
			t.Errorf("cluster %s has no TLS: %v", c.GetName(), err)
		}
	}
}

func validate(t *testing.T, envoy string, s bootstrap.Settings, n bootstrap.Node) {
	t.Helper()
	files := bootstrap.FilesIn(n.StateDir)
	if err := os.Mkdir(files.SecretsDir, 0o700); err != nil {
		t.Fatal(err)
	}
	config, err := bootstrap.Config(s, n)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files.Bootstrap, config, 0o600); err != nil {
		t.Fatal(err)
	}
	writeSecrets(t, files)
	out, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "-c", files.Bootstrap, "--disable-hot-restart").CombinedOutput()
	if err != nil {
		t.Errorf("envoy --mode validate: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "deprecated") {
		t.Errorf("the bootstrap uses what Envoy calls deprecated:\n%s", out)
	}
}

func writeSecrets(t *testing.T, files bootstrap.Files) {
	t.Helper()
	certificate, err := bootstrap.CertificateSecret([]byte("chain\n"), []byte("key\n"))
	if err != nil {
		t.Fatal(err)
	}
	trust, err := bootstrap.TrustSecret([]byte("roots\n"))
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{files.Certificate: certificate, files.Trust: trust} {
		var response discoveryv3.DiscoveryResponse
		if err := protojson.Unmarshal(content, &response); err != nil {
			t.Errorf("Envoy's API does not know %s: %v", filepath.Base(file), err)
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConfigRefusesHalfANode(t *testing.T) {
	n := node
	n.UID = ""
	if _, err := bootstrap.Config(plain, n); err == nil || !strings.Contains(err.Error(), "pod uid is empty") {
		t.Errorf("got %v; want an error that names the uid: outriggerd would refuse the stream without saying why", err)
	}
}

func TestEnvironment(t *testing.T) {
	// What %ENVIRONMENT(...)% stands for in what the control plane sends.
	want := []string{
		"POD_NAMESPACE=bookstore", "POD_NAME=bookstore-v1-5d9c", "SERVICE_ACCOUNT=bookstore-v1", "OTEL_RESOURCE_ATTRIBUTES=service.name=bookstore-v1.bookstore,k8s.namespace.name=bookstore,k8s.pod.name=bookstore-v1-5d9c,k8s.pod.uid=6f1e-77",
		"IDENTITY=spiffe://cluster.local/ns/bookstore/sa/bookstore-v1",
	}
	if diff := cmp.Diff(want, bootstrap.Environment(plain, node)); diff != "" {
		t.Errorf("Envoy's environment (-want +got):\n%s", diff)
	}
}

func TestFiles(t *testing.T) {
	if got := bootstrap.FilesIn("").Certificate; got != bootstrap.CertificateFile {
		t.Errorf("the agent writes %s, clusters by xDS read %s", got, bootstrap.CertificateFile)
	}
}

func TestParse(t *testing.T) {
	tests := map[string]struct {
		reason string
		change string // merged into the plain settings
		want   string // part of the error; empty: none
	}{
		"plain":        {"nothing else is needed", `{}`, ""},
		"all":          {"every field at once", `{"logLevel":"debug","concurrency":4,"drainSeconds":90,"memoryLimit":1,"probes":[{"path":"/a","http":{"port":80,"path":"/x?y","tls":true,"headers":[{"name":"Host","value":"h"}]},"timeout":3},{"path":"/b","tcp":{"port":1}},{"path":"/c","grpc":{"port":65535}}]}`, ""},
		"unknown":      {"a misspelled field is not ignored", `{"drainSecond":1}`, `unknown field "drainSecond"`},
		"no mesh":      {"the token would have no audience", `{"mesh":""}`, "mesh is empty"},
		"trust domain": {"it becomes part of an URI", `{"trustDomain":"a/b"}`, `trustDomain: "a/b"`},
		"also itself":  {"it would be there twice", `{"alsoTrusted":["cluster.local"]}`, `alsoTrusted: "cluster.local"`},
		"also a path":  {"it becomes part of an URI", `{"alsoTrusted":["mesh.new","a/b"]}`, `alsoTrusted: "a/b"`},
		"no port":      {"there is no default port", `{"controlPlane":"outriggerd"}`, `controlPlane: "outriggerd"`},
		"port zero":    {"nobody listens there", `{"controlPlane":"outriggerd:0"}`, `controlPlane: "outriggerd:0"`},
		"no id":        {"an empty name would be anybody with a certificate", `{"controlPlaneID":""}`, "controlPlaneID"},
		"level":        {"Envoy would not start", `{"logLevel":"loud"}`, `logLevel: "loud"; allowed are trace`},
		"workers":      {"less than none", `{"concurrency":-1}`, "concurrency: -1"},
		"drain":        {"less than none", `{"drainSeconds":-1}`, "drainSeconds: -1"},
		"memory":       {"less than none", `{"memoryLimit":-1}`, "memoryLimit: -1"},
		"two kinds":    {"which one counts?", `{"probes":[{"path":"/a","tcp":{"port":1},"grpc":{"port":1}}]}`, "2 of http, tcp and grpc"},
		"no kind":      {"nothing to ask", `{"probes":[{"path":"/a"}]}`, "0 of http, tcp and grpc"},
		"twice":        {"one would be unreachable", `{"probes":[{"path":"/a","tcp":{"port":1}},{"path":"/a","tcp":{"port":2}}]}`, `"/a" is there twice`},
		"ready":        {"it would hide readiness", `{"probes":[{"path":"/ready","tcp":{"port":1}}]}`, `probe "/ready"`},
		"itself":       {"the agent would ask itself for ever", `{"probes":[{"path":"/a","http":{"port":15020,"path":"/a"}}]}`, "port: 15020"},
		"header":       {"it would be two headers", `{"probes":[{"path":"/a","http":{"port":1,"headers":[{"name":"X","value":"a\r\nY: b"}]}}]}`, `header "X"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := bootstrap.Parse(merge(t, test.change))
			if test.want == "" && err != nil {
				t.Errorf("%s: %v", test.reason, err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%s: got error %v, want %q", test.reason, err, test.want)
			}
		})
	}
}

func TestParseFillsIn(t *testing.T) {
	s, err := bootstrap.Parse(merge(t, `{}`))
	if err != nil {
		t.Fatal(err)
	}
	if s.LogLevel != "warning" || s.Concurrency != 2 || s.DrainSeconds != 30 {
		t.Errorf("got %+v; want the documented defaults", s)
	}
	if _, err := bootstrap.Parse(merge(t, `{}`) + "{}"); err == nil {
		t.Error("text after the settings was ignored")
	}
}

func merge(t *testing.T, change string) string {
	t.Helper()
	settings := map[string]any{
		"mesh": plain.Mesh, "trustDomain": plain.TrustDomain, "controlPlane": plain.ControlPlane, "controlPlaneID": plain.ControlPlaneID,
	}
	if err := json.Unmarshal([]byte(change), &settings); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// FuzzParse holds that whatever Parse accepts makes a bootstrap that Envoy's API
// accepts, and survives a way to JSON and back.
func FuzzParse(f *testing.F) {
	seed, err := json.Marshal(plain)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(seed))
	f.Add(`{"mesh":"m","trustDomain":"d","controlPlane":"h:1","controlPlaneID":"spiffe://d/x","memoryLimit":1,"probes":[{"path":"/p","tcp":{"port":1}}]}`)
	f.Add(`{"probes":[{}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := bootstrap.Parse(text)
		if err != nil {
			return
		}
		config, err := bootstrap.Config(s, node)
		if err != nil {
			t.Fatalf("Parse accepts what Config refuses: %v", err)
		}
		readStrictly(t, config)
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bootstrap.Parse(string(again)); err != nil {
			t.Errorf("Parse refuses its own settings: %v", err)
		}
	})
}

// TestTrustOfSeveralDomains holds that each trust domain has its own roots and its own
// name of outriggerd.
func TestTrustOfSeveralDomains(t *testing.T) {
	text, err := plain.TrustSecret([]bootstrap.TrustDomain{{Name: "cluster.local", Roots: []byte("old")}, {Name: "mesh.new", Roots: []byte("new")}})
	if err != nil {
		t.Fatal(err)
	}
	var response discoveryv3.DiscoveryResponse
	if err := protojson.Unmarshal(text, &response); err != nil {
		t.Fatalf("Envoy's API does not know it: %v", err)
	}
	var secret tlsv3.Secret
	if err := response.GetResources()[0].UnmarshalTo(&secret); err != nil {
		t.Fatal(err)
	}
	context := secret.GetValidationContext()
	var names []string
	for _, m := range context.GetMatchTypedSubjectAltNames() {
		names = append(names, m.GetMatcher().GetExact())
	}
	_, path, _ := strings.Cut(strings.TrimPrefix(plain.ControlPlaneID, "spiffe://"), "/")
	if want := []string{plain.ControlPlaneID, "spiffe://mesh.new/" + path}; !slices.Equal(names, want) {
		t.Errorf("names are %q; want %q", names, want)
	}
	var validator tlsv3.SPIFFECertValidatorConfig
	if err := context.GetCustomValidatorConfig().GetTypedConfig().UnmarshalTo(&validator); err != nil {
		t.Fatal(err)
	}
	bundles := map[string]string{}
	for _, d := range validator.GetTrustDomains() {
		bundles[d.GetName()] = d.GetTrustBundle().GetInlineString()
	}
	if want := map[string]string{"cluster.local": "old", "mesh.new": "new"}; !maps.Equal(bundles, want) || context.GetTrustedCa() != nil {
		t.Errorf("bundles are %q; want %q and none for all", bundles, want)
	}
}
