package bootstrap

import (
	"cmp"
	"encoding/json"
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

// secret is a discovery response as Envoy reads it from a file: JSON is YAML.
func secret(name, kind string, content object) ([]byte, error) {
	return json.Marshal(object{"resources": list{
		typed("envoy.extensions.transport_sockets.tls.v3.Secret", object{"name": name, kind: content}),
	}})
}
