package scenario

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/internal/golden"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// TestEnvoy serves each story's Views to a real Envoy, one after the other: each
// must be taken whole, as the first configuration or as a change of another.
func TestEnvoy(t *testing.T) {
	ca := envoytest.NewCA(t)
	for _, s := range Stories(t) {
		t.Run(s.Name, func(t *testing.T) {
			if len(s.Proxies) == 0 {
				return // a story about what is not in the mesh
			}
			cache := xds.NewCache()
			first := s.Proxies[0].ID
			e := envoytest.Start(t, envoytest.Pod{
				Namespace: first.Namespace, Name: first.Pod, ServiceAccount: "default",
				Certificate: ca.Secret(t, s.Proxies[0].View.Outbound.Caller.URI(s.Options.TrustDomain)),
			})
			for _, p := range s.Proxies {
				set, err := cache.Set(p.View)
				if err != nil {
					t.Fatal(err)
				}
				golden.Compare(t, filepath.Join(p.Dir, "envoy.golden.yaml"), envoyYAML(t, set))
				e.Apply(t, set)
			}
		})
	}
}

// envoyYAML is a Set for people, without what is the same in every story;
// internal/xds/testdata shows it once.
func envoyYAML(t *testing.T, set *xds.Set) []byte {
	t.Helper()
	text, err := set.Dump()
	if err != nil {
		t.Fatal(err)
	}
	var plain any
	if err := yaml.Unmarshal(text, &plain); err != nil {
		t.Fatal(err)
	}
	if text, err = yaml.Marshal(withoutRepetition(plain)); err != nil {
		t.Fatal(err)
	}
	return text
}

// everywhere are the fields that say the same wherever they stand.
var everywhere = strings.Fields(`
	@type accessLog circuitBreakers commonLbConfig connectTimeout disableStatefulSessionResumption
	disableStatelessSessionResumption hostSelectionRetryMaxAttempts httpProtocolOptions idleTimeout
	localReplyConfig maxConnectAttempts maxEarlyDataBytes maxSessionKeys mergeSlashes normalizePath pathWithEscapedSlashesAction
	preserveExternalRequestId resourceApiVersion retriableHeaders retryBackOff retryHostPredicate
	serverHeaderTransformation setCurrentClientCertDetails statPrefix streamIdleTimeout suppressEnvoyHeaders
	tlsCertificateSdsSecretConfigs tlsParams transportSocketMatches trustBundle trustedCa typedExtensionProtocolOptions
	upgradeConfigs upstreamConnectMode`)

func withoutRepetition(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range everywhere {
			delete(v, key)
		}
		for key, inner := range v {
			v[key] = withoutRepetition(inner)
		}
	case []any:
		v = slices.DeleteFunc(v, func(item any) bool {
			m, _ := item.(map[string]any)
			name, _ := m["name"].(string)
			return slices.Contains([]string{"closed", "denied", "denied-egress", "passthrough"}, name)
		})
		for i, inner := range v {
			v[i] = withoutRepetition(inner)
		}
		return v
	}
	return v
}
