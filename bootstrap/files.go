package bootstrap

import (
	"cmp"
	"encoding/json"
	"strings"
)

// Programs of the proxy image.
const (
	AgentBinary = "/outrigger-agent"
	EnvoyBinary = "/usr/local/bin/envoy"
)

// Names of the secrets that the agent keeps in files for Envoy.
const (
	// CertificateName is the workload's key and chain.
	CertificateName = "certificate"
	// TrustName is what outriggerd is verified against. Other workloads are
	// verified against what comes by xDS.
	TrustName = "trust"
)

// CertificateFile is where clusters and listeners that come by xDS find the
// secret [CertificateName]. It is replaced by rename: watch its folder.
const CertificateFile = StateDir + "/sds/certificate.yaml"

// Files are the paths that Envoy and its agent share.
type Files struct {
	Bootstrap   string // what Envoy starts with
	SecretsDir  string // 0700
	Certificate string // in SecretsDir
	Trust       string // in SecretsDir
	Accepted    string // what outriggerd trusts, for the agent itself
	AdminSocket string // Envoy's
	AgentSocket string // the agent's, for the other commands of its binary
}

// FilesIn returns the paths below a state folder. Empty is [StateDir].
func FilesIn(dir string) Files {
	dir = cmp.Or(dir, StateDir)
	return Files{
		Bootstrap:   dir + "/envoy.json",
		SecretsDir:  dir + "/sds",
		Certificate: dir + "/sds/certificate.yaml",
		Trust:       dir + "/sds/trust.yaml",
		Accepted:    dir + "/accepted.json",
		AdminSocket: dir + "/envoy.sock",
		AgentSocket: dir + "/agent.sock",
	}
}

// CertificateSecret returns what the file of [CertificateName] holds, for a chain
// and its key, both PEM. Both are in one file because Envoy refuses a key and a
// chain that do not fit, as it would see between two renames.
func CertificateSecret(chain, key []byte) ([]byte, error) {
	return secret(CertificateName, "tls_certificate", object{
		"certificate_chain": object{"inline_string": string(chain)},
		"private_key":       object{"inline_string": string(key)},
	})
}

// TrustSecret returns what the file of [TrustName] holds, for roots in PEM.
func TrustSecret(roots []byte) ([]byte, error) {
	return secret(TrustName, "validation_context", object{"trusted_ca": object{"inline_string": string(roots)}})
}

// A TrustDomain is one that is accepted, with the roots that vouch for it, PEM.
type TrustDomain struct {
	Name  string
	Roots []byte
}

// TrustSecret returns what the file of [TrustName] holds where outriggerd may be in
// another trust domain than that of the settings: its name in each of them, which
// Envoy joins with the one of its configuration, and the roots of each. Roots vouch
// for no other trust domain than theirs.
func (s Settings) TrustSecret(domains []TrustDomain) ([]byte, error) {
	var names, bundles list
	for _, d := range domains {
		names = append(names, object{"san_type": "URI", "matcher": object{"exact": s.ControlPlaneIDIn(d.Name)}})
		bundles = append(bundles, object{"name": d.Name, "trust_bundle": object{"inline_string": string(d.Roots)}})
	}
	return secret(TrustName, "validation_context", object{
		"match_typed_subject_alt_names": names,
		"custom_validator_config": object{
			"name":         "envoy.tls.cert_validator.spiffe",
			"typed_config": typed("envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig", object{"trust_domains": bundles}),
		},
	})
}

// ControlPlaneIDIn returns the SPIFFE ID that outriggerd must present in a trust
// domain.
func (s Settings) ControlPlaneIDIn(domain string) string {
	_, path, _ := strings.Cut(strings.TrimPrefix(s.ControlPlaneID, "spiffe://"), "/")
	return "spiffe://" + domain + "/" + path
}

// secret is a discovery response as Envoy reads it from a file: JSON is YAML.
func secret(name, kind string, content object) ([]byte, error) {
	return json.Marshal(object{"resources": list{
		typed("envoy.extensions.transport_sockets.tls.v3.Secret", object{"name": name, kind: content}),
	}})
}
