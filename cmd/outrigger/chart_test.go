package main

import (
	"io/fs"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
	"github.com/outrigger-mesh/outrigger/manifests"
)

// TestEveryValueIsUsed fails for a value of the chart that does nothing.
func TestEveryValueIsUsed(t *testing.T) {
	used := map[string]bool{}
	files, err := fs.Glob(manifests.Chart, "templates/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := manifests.Chart.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range regexp.MustCompile(`\.Values\.([\w.]+)`).FindAllStringSubmatch(string(text), -1) {
			used[match[1]] = true
		}
	}
	text, err := manifests.Chart.ReadFile("values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]any{}
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatal(err)
	}
	var visit func(prefix string, values map[string]any)
	visit = func(prefix string, values map[string]any) {
		for key, value := range values {
			below, isMap := value.(map[string]any)
			switch {
			case used[prefix+key]: // a map may be used as a whole
			case isMap && len(below) > 0:
				visit(prefix+key+".", below)
			default:
				t.Errorf("no template uses the value %s", prefix+key)
			}
		}
	}
	visit("", values)
}

// TestLegacyIptables wants one value to reach pods by both ways.
func TestLegacyIptables(t *testing.T) {
	for value, want := range map[string]bool{"true": true, "false": false} {
		set := "proxy.legacyIptables=" + value
		chart, _, err := runCommand(t, "", "install", "--dry-run", "--set", set)
		if err != nil || !strings.Contains(chart, "--legacy-iptables="+value) {
			t.Errorf("%s: outriggerd is not told (%v)", set, err)
		}
		pods, _, err := runCommand(t, "", "inject", "-f", shop, "--set", set)
		if got := strings.Contains(pods, "NET_RAW"); got != want || err != nil {
			t.Errorf("%s: init containers have NET_RAW: %t, %v", set, got, err)
		}
	}
}

// TestVaultLogin wants outriggerd to have a token for Vault where it is to log in with
// its service account, and nowhere else.
func TestVaultLogin(t *testing.T) {
	const address = "certificates.vault.address=https://v:8200,certificates.vault.role=mesh"
	cases := map[string]struct {
		set      string
		token    bool
		audience string
	}{
		"not chosen":       {set: ""},
		"token in Secret":  {set: address + ",certificates.vault.token.secret=s,certificates.vault.token.key=k"},
		"Kubernetes":       {set: address + ",certificates.vault.kubernetes.role=r", token: true, audience: `audience: "vault"`},
		"another audience": {set: address + ",certificates.vault.kubernetes.role=r,certificates.vault.kubernetes.audience=bank", token: true, audience: `audience: "bank"`},
		"beside the webhook's certificate": {
			set:   address + ",certificates.vault.kubernetes.role=r,webhook.certManager.enabled=true,webhook.certManager.issuerRef.name=i",
			token: true, audience: `audience: "vault"`,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			chart, _, err := runCommand(t, "", "install", "--dry-run", "--set", tc.set)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(chart, "mountPath: /var/run/secrets/outrigger.dev/vault\n"); got != tc.token {
				t.Errorf("%s: the token is mounted: %t; want %t", tc.set, got, tc.token)
			}
			if !strings.Contains(chart, tc.audience) {
				t.Errorf("%s: the chart has no %s", tc.set, tc.audience)
			}
		})
	}
}

// TestAuthority wants outriggerd to be told who signs, and to have the right to read
// the Secrets that this needs and no others.
func TestAuthority(t *testing.T) {
	const own = `"outrigger-ca","outrigger-ca-2","outrigger-ca-3","outrigger-ca-4","outrigger-webhook-ca"`
	cases := map[string]struct{ set, authority, secrets string }{
		"own root":     {set: "", authority: `{"builtIn":{"secret":""}}`, secrets: own},
		"user's":       {set: "certificates.builtIn.secret=mine", authority: `{"builtIn":{"secret":"mine"}}`, secrets: own + `,"mine"`},
		"cert-manager": {set: "certificates.issuer=certManager,certificates.certManager.issuer=mesh", authority: `{"certManager":{"group":"cert-manager.io","issuer":"mesh","kind":"Issuer","rootsConfigMap":""}}`, secrets: own},
		"Vault": {
			set:       "certificates.issuer=vault,certificates.vault.address=https://v:8200,certificates.vault.role=mesh,certificates.vault.token.secret=login,certificates.vault.token.key=token,certificates.vault.caSecret=vault-ca",
			authority: `"role":"mesh","roots":"","token":{"key":"token","secret":"login"}}}`, secrets: own + `,"vault-ca","login"`,
		},
		"Kubernetes login": {
			set:       "certificates.issuer=vault,certificates.vault.address=https://v:8200,certificates.vault.role=mesh,certificates.vault.kubernetes.role=outriggerd",
			authority: `"kubernetes":{"role":"outriggerd"}`, secrets: own,
		},
		"later": {set: "certificates.secrets={next}", authority: `{"builtIn":{"secret":""}}`, secrets: own + `,"next"`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			chart, _, err := runCommand(t, "", "install", "--dry-run", "--set", tc.set)
			if err != nil || !strings.Contains(chart, "resourceNames: ["+tc.secrets+"]\n") {
				t.Errorf("%s: outriggerd may not read [%s] (%v)", tc.set, tc.secrets, err)
			}
			match := regexp.MustCompile(`'--authority=(.*)'`).FindStringSubmatch(chart)
			if match == nil || !strings.Contains(match[1], tc.authority) {
				t.Fatalf("%s: outriggerd is told %q; want %s", tc.set, match, tc.authority)
			}
			if _, err := rotation.ParseAuthority([]byte(match[1]), "cluster.local"); err != nil {
				t.Errorf("%s: %v", tc.set, err)
			}
		})
	}
}

// TestSlipsInValues wants an error where a value would otherwise do nothing.
func TestSlipsInValues(t *testing.T) {
	for set, want := range map[string]string{
		"traficPolicy=enforced":             "traficPolicy",
		"trafficPolicy=closed":              "'permissive', 'enforced'",
		"egress=false":                      "'allow', 'deny'",
		"proxy.cpulimit=1":                  "cpulimit",
		"proxy.concurrency=1000":            "concurrency",
		"exclusions.inboundPorts={70000}":   "inboundPorts",
		"tracing.sampling=101":              "tracing/sampling",
		"tracing.sampling=0.005":            "tracing/sampling",
		"tracing.collector=otel.watch":      "tracing/collector",
		"clusterTrustBundle=always":         "'auto', 'never'",
		"certificates.builtIn.secret=My_CA": "certificates/builtIn/secret",
		"certificates.issuer=tresor":        "'builtIn', 'certManager', 'vault'",
		"webhook.certManager.enabled=true":  "webhook.certManager.issuerRef.name is empty",
		"certificates.issuer=certManager":   "certificates.certManager.issuer is empty",
		"certificates.issuer=vault":         "certificates.vault.address is empty",
		"certificates.issuer=vault,certificates.vault.address=https://v:8200":                              "certificates.vault.role is empty",
		"certificates.issuer=vault,certificates.vault.address=https://v:8200,certificates.vault.role=mesh": "certificates.vault.token and certificates.vault.kubernetes",
		"certificates.vault.token.secret=s,certificates.vault.kubernetes.role=r":                           "certificates.vault.token and certificates.vault.kubernetes",
		"certificates.vault.address=http://v:8200":                                                         "certificates/vault/address",
		"certificates.workloadDuration=a day":                                                              "certificates/workloadDuration",
		"webhook.certManager.issuerRef.knd=ClusterIssuer":                                                  "knd",
	} {
		_, _, err := runCommand(t, "", "install", "--dry-run", "--set", set)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v does not say %s", set, err, want)
		}
	}
	good := []string{"--set", "proxy.cpuLimit=1", "--set", "image.tag=7", "--set", "tracing.sampling=0.07", "--set", "tracing.collector=otel.watch.svc:4317", "--set", "serviceCIDRs={10.0.0.0/16}", "--set", "exclusions.outboundPorts={1,2}", "--set", "controlPlane.affinity=null"}
	if _, _, err := runCommand(t, "", append([]string{"install", "--dry-run"}, good...)...); err != nil {
		t.Errorf("good values are refused: %v", err)
	}
}

// TestCertManagerRights wants outriggerd to have cert-manager's kinds only where an
// issuer of it is named, and never the right to approve.
func TestCertManagerRights(t *testing.T) {
	for set, want := range map[string]bool{
		"": false,
		"certificates.issuer=certManager,certificates.certManager.issuer=mesh": true,
		"certificates.certManager.issuer=next":                                 true, // to rotate to
	} {
		chart, _, err := runCommand(t, "", "install", "--dry-run", "--set", set)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(chart, "certificaterequests"); got != want {
			t.Errorf("%q: outriggerd has rights for CertificateRequests: %t, want %t", set, got, want)
		}
		if strings.Contains(chart, "certificaterequests/") || strings.Contains(chart, "signers") {
			t.Errorf("%q: outriggerd could approve its own requests", set)
		}
	}
}

// TestIngressGatewayCertificate wants a certificate for one service account, from an
// issuer that can sign where it is.
func TestIngressGatewayCertificate(t *testing.T) {
	const values = "certificates.ingressGateway.namespace=ingress,certificates.ingressGateway.serviceAccount=nginx"
	cases := map[string]struct{ set, want, problem string }{
		"none":          {set: "", want: ""},
		"ClusterIssuer": {set: values + ",certificates.certManager.issuer=mesh,certificates.certManager.kind=ClusterIssuer", want: "spiffe://cluster.local/ns/ingress/sa/nginx"},
		"its own issuer and domain": {
			set:  values + ",certificates.certManager.issuer=new,certificates.ingressGateway.issuerRef.name=mesh,certificates.ingressGateway.issuerRef.kind=Issuer,certificates.ingressGateway.trustDomain=mesh.old",
			want: "spiffe://mesh.old/ns/ingress/sa/nginx\n  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}\n  usages: [digital signature, client auth]\n  issuerRef:\n    kind: Issuer\n    name: mesh\n",
		},
		"no issuer":  {set: values, problem: "certificates.certManager.issuer are empty"},
		"no account": {set: "certificates.ingressGateway.namespace=ingress,certificates.certManager.issuer=mesh,certificates.certManager.kind=ClusterIssuer", problem: "serviceAccount is empty"},
		"elsewhere":  {set: values + ",certificates.certManager.issuer=mesh", problem: "signs in its own namespace only"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			chart, _, err := runCommand(t, "", "install", "--dry-run", "--set", tc.set)
			if tc.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tc.problem) {
					t.Errorf("got %v, want an error with %q", err, tc.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(chart, "kind: Certificate\n"); got != (tc.want != "") || !strings.Contains(chart, tc.want) {
				t.Errorf("a Certificate is made: %t; want %q", got, tc.want)
			}
		})
	}
}
