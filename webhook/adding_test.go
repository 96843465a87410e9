//go:build integration

package webhook

import (
	"encoding/json"
	"net/http"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
)

// addingHandler is somebody else's webhook: it adds a container at the end and an
// init container in front, once.
func addingHandler(t *testing.T) http.Handler {
	const patch = `[
		{"op":"add","path":"/spec/containers/-","value":{"name":"late","image":"example.com/late:1","readinessProbe":{"httpGet":{"path":"/up","port":9200}}}},
		{"op":"add","path":"/spec/initContainers/0","value":{"name":"early","image":"example.com/early:1"}}
	]`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Errorf("the API server sent no review: %v", err)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{
			UID: review.Request.UID, Allowed: true, Patch: []byte(patch), PatchType: new(admissionv1.PatchTypeJSONPatch),
		}
		review.Request = nil
		if err := json.NewEncoder(w).Encode(review); err != nil {
			t.Errorf("answer: %v", err)
		}
	})
}
