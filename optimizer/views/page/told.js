// What is said where something cannot be done? A sentence with a status, as a server gives it: no fault of the page.
export class Told extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}
