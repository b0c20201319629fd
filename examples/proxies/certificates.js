// RFC 9440 for nginx, which has certificates in PEM only, and of its client's chain only the leaf.
import fs from 'fs';

function sequences(pem) {
    const found = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) || [];
    return found.map((one) => ':' + one.replace(/-----[^-]+-----|\s/g, '') + ':').join(', ');
}

function leaf(r) {
    return sequences(r.variables.ssl_client_raw_cert || '');
}

function chain(r) {
    return r.variables.ssl_client_raw_cert ? sequences(fs.readFileSync(r.variables.fleet_ca).toString()) : '';
}

export default { leaf, chain };
